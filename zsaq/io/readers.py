"""What reads a model's inputs and lies beside it: a tokenizer, or an image processor."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedTokenizerBase
from transformers.image_processing_utils import BaseImageProcessor

from zsaq.foreign import UNMADE

TOKENIZER: Final = (  # files that only a tokenizer has
    *("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "merges.txt", "tokenizer.model"),
    *("spiece.model", "sentencepiece.bpe.model", "source.spm", "spm.model"),
)
PROCESSOR: Final = ("preprocessor_config.json", "processor_config.json")


def check_readers(**readers: Any) -> None:
    """Raises ValueError for a tokenizer or processor that could not be saved beside a student; None is none."""
    for name, reader in readers.items():
        if reader is not None and (isinstance(reader, type) or not callable(getattr(reader, "save_pretrained", None))):
            what = f"{reader!r:.80}" if isinstance(reader, str | Path | type) else f"a {type(reader).__name__}"
            raise ValueError(
                f"{name} is {what}, which cannot be saved beside the student (save_pretrained): give the one that "
                "transformers loads, or leave it off"
            )


def tokenizer_of(source: str | Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer that lies beside a model; None where there is none. Raises ValueError as `read` does."""

    def make() -> PreTrainedTokenizerBase:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):  # made of no file, by the model's type
            raise ValueError("its vocabulary is empty")
        tokenizer(["a b", ""])  # what its parts do not agree on shows in use alone
        return tokenizer

    return read(source, TOKENIZER, "tokenizer", make)


def processor_of(source: str | Path) -> BaseImageProcessor | None:
    """The image processor that lies beside a model, on Pillow; None where there is none, or no Pillow. Raises
    ValueError as `read` does."""
    return read(
        source, PROCESSOR, "processor",
        lambda: AutoImageProcessor.from_pretrained(source, backend="pil", trust_remote_code=False),
    )  # fmt: skip


def read(source: str | Path, names: tuple[str, ...], what: str, make: Callable[[], Any]) -> Any:
    """What `make` makes of the files beside a model; None where it has none of `names`, and for a missing package.

    Raises ValueError where a folder has such files and nothing can be made of them: nobody shall go on without a
    tokenizer that seems to be there.
    """
    try:
        return make()
    except ImportError:
        return None
    except BaseException as error:  # the tokenizers' own have no type but Exception, or are panics of Rust
        if not isinstance(error, Exception) and type(error).__module__ != "pyo3_runtime":
            raise
        if there := [name for name in names if (Path(source) / name).is_file()]:
            raise ValueError(
                f"{source}: no {what} can be made of {', '.join(there)} ({type(error).__name__}: {error}): fetch the "
                f"files again, give the {what} as {what}=..., or take the files away"
            ) from error
        if not isinstance(error, (OSError, ValueError, *UNMADE)):
            raise
        return None
