"""How the files of sentence-transformers are found, in a folder or the Hub's cache, and read as anybody's: of each only
the keys that are known, and these of their form."""

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, final, get_args

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

from zsaq.form import LARGEST, parsed
from zsaq.pooling import Mode

MODULES: Final = "modules.json"
PROMPTS: Final = "config_sentence_transformers.json"
LENGTHS: Final = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
CONFIG: Final = "config.json"
FOLDER: Final = re.compile(r"\d+_(Pooling|Normalize)")
LEGACY: Final = {  # flags of the modes, in the order in which they are laid side by side
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
STATES: Final = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
AGAIN: Final = "fetch the files again, or take them away for the mean over all tokens"


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_count(value: Any) -> bool:
    return value is None or (type(value) is int and 1 <= value < 2**31)


def is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def is_any_of(*values: Any) -> Callable[[Any], bool]:
    return lambda value: value in values


KEYS: Final[dict[str, dict[str, Callable[[Any], bool]]]] = {  # what of each file is kept, and its form
    "Pooling": {
        "embedding_dimension": is_count,
        "word_embedding_dimension": is_count,
        "pooling_mode": lambda modes: all(mode in get_args(Mode) for mode in listed(modes)),
        "include_prompt": is_flag,
        **dict.fromkeys(LEGACY, is_flag),
    },
    "Normalize": dict.fromkeys(("module_input_name", "module_output_name"), is_any_of("sentence_embedding")),
    "Transformer": {
        "max_seq_length": is_count,
        "do_lower_case": is_flag,
        "transformer_task": is_any_of("feature-extraction"),
        "modality_config": is_any_of(STATES),
        "module_output_name": is_any_of("token_embeddings"),
    },
    "": {
        "__version__": lambda versions: isinstance(versions, dict) and all(map(is_text, versions.values())),
        "model_type": is_text,
        "prompts": lambda prompts: isinstance(prompts, dict) and all(map(is_text, prompts.values())),
        "default_prompt_name": lambda name: name is None or is_text(name),
        "similarity_fn_name": lambda name: name is None or is_text(name),
    },
}


@final
class Reader:
    """Reads the files of `source`, and notes the keys that nobody here knows."""

    def __init__(self, source: str | Path) -> None:
        self.source = source
        self.notes: list[str] = []

    def read(self, name: str, kind: str) -> dict[str, Any]:
        """The known keys of a file; {} where there is none. Raises ValueError for values of another form."""
        if (path := found(self.source, name)) is None:
            return {}
        data = read(path)
        if not isinstance(data, dict):
            raise ValueError(f"{path} holds no JSON object: {AGAIN}")
        known = {key: value for key, value in data.items() if key in KEYS[kind]}
        for key, value in known.items():
            if not KEYS[kind][key](value):
                raise ValueError(f"{path}: its {key} is {value!r:.200}, which is nothing that is known here: {AGAIN}")
        if unknown := [key for key, value in data.items() if key not in known and value not in (None, {}, [])]:
            self.notes.append(f"{name} has {', '.join(map(repr, unknown))[:200]}, left out")
        return known


def listed(modes: Any) -> list[Any]:
    """The modes of `pooling_mode`, which is one or a list of several; what is neither is [None]."""
    several = modes if isinstance(modes, list) else [modes]
    return several if several and all(map(is_text, several)) else [None]


def chain_of(path: Path) -> list[tuple[str, str]]:
    """Kind and folder of each module that modules.json names. Raises ValueError for others than this package's."""
    data = read(path)
    if not isinstance(data, list) or not 1 <= len(data) <= 16:
        raise ValueError(f"{path} holds no list of modules: {AGAIN}")
    chain = []
    for place, module in enumerate(data):
        own, where = (module.get(key) if isinstance(module, dict) else None for key in ("type", "path"))
        if not isinstance(own, str) or not re.fullmatch(r"sentence_transformers(\.\w+)+", own):
            raise ValueError(f"{path} names {own!r:.200}, which is other code than sentence-transformers': {AGAIN}")
        kind = own.rpartition(".")[2]
        if kind in ("Pooling", "Normalize") and not (isinstance(where, str) and FOLDER.fullmatch(where)):
            raise ValueError(f"{path} puts {kind} into {where!r:.200}, and it lies in {place}_{kind}: {AGAIN}")
        if kind == "Transformer" and where != "":
            raise ValueError(f"{path} puts the model into {where!r:.200}, and it lies beside: {AGAIN}")
        chain.append((kind, str(where)))
    return chain


def read(path: Path) -> Any:
    """JSON that nobody has checked. Raises ValueError for what is none, is too large or too deep."""
    try:
        if not path.is_file() or path.stat().st_size > LARGEST:
            raise ValueError(f"it is no regular file of at most {LARGEST} bytes")
        return parsed(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}): {AGAIN}") from error


def found(source: str | Path, name: str) -> Path | None:
    """The file of that name in a folder, or in the Hub's cache for an id."""
    if Path(source).is_dir():
        return path if (path := Path(source) / name).exists() else None
    with suppress(HFValidationError):
        path = try_to_load_from_cache(str(source), name)
        return Path(path) if isinstance(path, str) else None
    return None


def fetch(source: str | Path) -> None:
    """The files of an id into the Hub's cache, where it has any and the Hub is reached."""
    if Path(source).is_dir():
        return
    with suppress(EntryNotFoundError, OSError, HfHubHTTPError, HFValidationError):
        modules = chain_of(Path(hf_hub_download(str(source), MODULES)))
        for name in (*LENGTHS, PROMPTS, *(f"{where}/{CONFIG}" for _, where in modules if FOLDER.fullmatch(where))):
            with suppress(EntryNotFoundError):
                hf_hub_download(str(source), name)
