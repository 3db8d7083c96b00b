"""What the folder of a student holds, and how transformers' own writer puts a new student there.

`save_pretrained` of transformers writes into any folder: over a float model, and beside the exports, reports, shards
and tokenizers of an earlier student, which would then pass for the new one's.
"""

import functools
import json
import os
import re
import warnings
from collections.abc import Collection, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final

from transformers import PreTrainedModel

from zsaq.atomic import beside, locked, remove, settle_all

METHOD: Final = "zsaq"
PLAIN: Final = PreTrainedModel.save_pretrained
CONFIG: Final = "config.json"
LARGEST: Final = 2**24  # bytes of a config.json that is read
LINE: Final = 2**16  # bytes of a log's first line that are read
MODEL: Final = (CONFIG, "*.safetensors", "*.safetensors.index.json", "pytorch_model*", "adapter_config.json")
MADE: Final = ("zsaq_manifest.json", "results.json", "parity.json", "bench.json")
READERS: Final = (  # tokenizers and processors
    *("tokenizer.*", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "*.model"),
    *("*preprocessor_config.json", "processor_config.json", "chat_template*", "additional_chat_templates"),
)
DRAWN: Final = ("README.md", "report.html", "curves.png", ".eval_results")
PICTURES: Final = "pictures"
PAINTED: Final = ("images.png", "spectrum.png", "losses.png")  # in that folder, and in folders there
FILTERED: Final = ("filter.png", "filter-spectrum.png")  # there too, where a run is at work
HUB: Final = (".gitattributes", ".cache")
OWN: Final = (*MODEL, "generation_config.json", *MADE, *READERS, *DRAWN, *HUB)
ANYBODYS: Final = (  # names that others give too
    *("*.safetensors", "*.safetensors.index.json", "pytorch_model*", "adapter_config.json", "*.model"),
)
EXPORTS: Final = ("onnx", "openvino", "compressed-tensors", "gguf", "gptq")
UNFINISHED: Final = re.compile(r"\..*\.[0-9a-f]{8}\.(partial.*|lock)")  # `zsaq.atomic`, of a writer that was killed


def is_export(path: Path) -> bool:
    return (path / "export.json").is_file()


def is_drawn(path: Path) -> bool:
    """Whether it is the folder of a student's pictures, and holds nothing else."""
    return path.name == PICTURES and all(
        each.name in (*PAINTED, *FILTERED) or each.name[0] == "." or each.is_dir() for each in path.rglob("*")
    )


def is_own(path: Path, listed: Collection[str] | None = None) -> bool:
    """Whether a file or folder beside a student is a part of it, or was made of it, or describes it. `listed`: what its
    manifest has; without one the names that `ANYBODYS` weights and tokenizers have tell too."""
    if listed is not None and path.name not in listed and matches(path, ANYBODYS):
        return False
    named = path.name in (listed or ()) or matches(path, OWN) or UNFINISHED.fullmatch(path.name) is not None
    return named or is_export(path) or is_drawn(path) or (path.suffix == ".jsonl" and is_log(path))


def matches(path: Path, patterns: Sequence[str]) -> bool:
    return any(fnmatch(path.name, pattern) for pattern in patterns)


def is_log(path: Path) -> bool:
    """Whether a file begins with a line of a stage's log (`StepLog.write`)."""
    try:
        with path.open("rb") as file:
            line = json.loads(file.readline(LINE))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(line, dict) and {"step", "seconds"} <= line.keys()


def method_in(folder: Path) -> str | None:
    """The `quant_method` of the model that lies in `folder`, "" for a float model, None where no config tells one."""
    try:
        if (folder / CONFIG).stat().st_size > LARGEST:
            return ""
        config = json.loads((folder / CONFIG).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        return None
    known = config.get("quantization_config") if isinstance(config, dict) else None
    return str(known.get("quant_method", "")) if isinstance(known, dict) else ""


def put(student: PreTrainedModel, folder: str | Path, is_main_process: bool = True, *args: Any, **options: Any) -> None:
    """transformers' own `save_pretrained`, where nothing else is lost and nothing of another model stays.

    What lies in `folder` of an earlier student of zsaq goes, with its tokenizer and all that was made of it; what is
    neither (a Trainer's checkpoints and state) stays. The model is written beside the folder first, and there is
    none while it is put in place: its config comes last. Raises ValueError for a file, and for a folder that holds
    another model or a part of one.
    """
    target = Path(folder).resolve()
    if not is_main_process:
        PLAIN(student, target, is_main_process, *args, **options)
        return
    if target.is_dir():
        with locked(target):
            replaced(target)
    elif os.path.lexists(target):
        raise ValueError(f"{target} is no folder: give one that is, or a new one")
    options |= {"repo_id": target.name} if options.get("push_to_hub") and "repo_id" not in options else {}
    with beside(target) as (partial, _, mode):
        PLAIN(student, partial, is_main_process, *args, **options)
        settle_all(partial, mode)
        target.mkdir(exist_ok=True)
        with locked(target):
            old = replaced(target)
            readers = sorted(path.name for path in old if matches(path, READERS))
            for path in sorted(old, key=lambda path: path.name != CONFIG):
                remove(path)
            for path in sorted(partial.iterdir(), key=lambda path: path.name == CONFIG):
                os.replace(path, target / path.name)
    if readers:
        warnings.warn(
            f"{', '.join(readers)} of the model that lay in {target} went with it: save the tokenizer or processor "
            "after the model",
            stacklevel=3,
        )


def replaced(target: Path) -> list[Path]:
    """What of an earlier student in the folder `target` goes for a new one. Raises ValueError where `put` would lose
    something else, or mix two models."""
    if method_in(target) == METHOD:
        return [path for path in target.iterdir() if is_own(path)]
    for path in sorted(target.iterdir()):
        if is_export(path) or path.name in EXPORTS or matches(path, (*MODEL, *MADE)):
            raise ValueError(
                f"{target} holds {path.name}, which is no student of zsaq and would be mixed with this one or lost: "
                "give a new folder, or empty this one"
            )
    return []


def guard() -> None:
    """From now on `save_pretrained` of a student is `put`, whoever calls it: a notebook, a Trainer, a push of
    transformers. That of every other model is as it was; a student's adapters go where no model lies."""

    @functools.wraps(PLAIN)
    def save_pretrained(self: PreTrainedModel, save_directory: Any, *args: Any, **options: Any) -> None:
        if method_of(self) != METHOD:
            PLAIN(self, save_directory, *args, **options)
        elif getattr(self, "_hf_peft_config_loaded", False):
            check_adapters(Path(save_directory))
            PLAIN(self, save_directory, *args, **options)
        else:
            put(self, save_directory, *args, **options)

    PreTrainedModel.save_pretrained = save_pretrained  # pyright: ignore[reportAttributeAccessIssue]


def method_of(model: PreTrainedModel) -> str | None:
    """The `quant_method` of a model that is quantized in transformers' sense."""
    quantizer = getattr(model, "hf_quantizer", None)
    return None if quantizer is None else getattr(quantizer.quantization_config, "quant_method", None)


def check_adapters(target: Path) -> None:
    """Raises ValueError for a folder with a model, which would read the adapters that are written beside it."""
    if target.is_dir() and (held := [path.name for path in target.iterdir() if matches(path, (CONFIG, *MADE))]):
        raise ValueError(f"{target} holds {held[0]} of a model: give adapters a folder of their own")
