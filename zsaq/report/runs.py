"""What a comparison's kept runs belong to, as hashes of whatever was given, and their file after a run was killed."""

import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from logging import Logger
from operator import length_hint
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Final

import torch
from torch import nn
from torch.utils.data import DataLoader

from zsaq.form import parsed
from zsaq.io.checksums import fingerprint
from zsaq.report.comparison import RUNS, Comparison

PLAIN: Final = (str, bytes, bool, int, float, Path, type(None))
READING: Final = (  # what ids depend on beside a tokenizer's own rules
    *("model_max_length", "padding_side", "truncation_side", "chat_template", "model_input_names"),
    *("special_tokens_map", "clean_up_tokenization_spaces"),
)
PASSING = ("_name_or_path", "name_or_path", "transformers_version")  # of a config: not what the model computes


def told(value: Any) -> str:
    """A value in a key: plain ones as they are, functions by module and name, all others as a hash of their content;
    a function that was made in another by what it holds from there, too."""
    if value is None or isinstance(value, str | bool | int | float):
        return str(value)
    digest = hashlib.sha256()
    feed(digest, value)
    own = getattr(value, "__qualname__", None)
    plain = own and "<" not in own and not hasattr(value, "__self__")
    return f"{value.__module__}.{own}" if plain else digest.hexdigest()[:16]


def told_model(source: Any) -> str:
    """A model that is named by a path or id: a folder by the hash of its files, an id as it is; else as `told`."""
    if isinstance(source, str | Path) and (folder := Path(os.path.expanduser(source))).is_dir():
        return fingerprint(folder)[:16]
    return told(str(source) if isinstance(source, Path) else source)


def feed(digest: Any, value: Any, around: frozenset[int] = frozenset()) -> None:
    """The content of a value: of an object all that it holds, of an iterator its class and length, of a loader its data
    set and length, of what Accelerate made, which each process has its own of, the class. `around`: the ids of what
    holds it, where it is not read again."""
    kind = type(value)
    own = value if hasattr(value, "__qualname__") else kind
    digest.update(f"{getattr(own, '__module__', '')}.{own.__qualname__}|".encode())
    around, met = around | {id(value)}, id(value) in around
    if isinstance(value, PLAIN):
        parts: Any = repr(value)
    elif isinstance(value, type) or met:
        return
    elif isinstance(value, torch.Tensor):
        plain = value.detach().cpu().contiguous()
        digest.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy())
        return
    elif isinstance(value, nn.Module):
        config = getattr(value, "config", None)
        settings = config.to_dict() if hasattr(config, "to_dict") else {}  # pyright: ignore
        parts = [
            placeless(value),
            {key: str(each) for key, each in settings.items() if key not in PASSING},
            dict(value.state_dict()),
        ]
        if not settings and (more := attributes(value)):
            parts.append(more)
    elif isinstance(value, Mapping):
        parts = [part for key in sorted(value, key=str) for part in (key, value[key])]
    elif isinstance(value, list | tuple):
        parts = value
    elif isinstance(value, set | frozenset):
        parts = sorted(map(repr, value))
    elif isinstance(value, functools.partial):
        parts = [value.func, value.args, value.keywords]
    elif isinstance(value, CodeType):
        parts = [value.co_code, value.co_names, value.co_consts]
    elif isinstance(value, FunctionType):
        parts = [value.__defaults__, value.__code__ if value.__name__ == "<lambda>" else None]
        parts += [held(cell) for cell in value.__closure__ or ()] + [value.__kwdefaults__] * bool(value.__kwdefaults__)
    elif isinstance(value, MethodType):
        parts = [value.__self__]
    elif isinstance(value, ModuleType | Logger):
        parts = getattr(value, "__name__", None) or value.name
    elif dataclasses.is_dataclass(value):
        parts = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.compare}
    elif hasattr(value, "tobytes"):  # an array, an image
        parts = [getattr(value, "shape", getattr(value, "size", None)), value.tobytes()]
    elif hasattr(value, "get_vocab"):
        parts = reading(value)
    elif hasattr(value, "to_dict"):
        parts = str(sorted(item for item in value.to_dict().items() if item[0] not in PASSING))
    else:
        inside = [getattr(value, name, None) for name in ("tensors", "dataset", "_fingerprint")]
        parts = [length_hint(value, -1) if hasattr(kind, "__len__") else None, *inside]
        known = isinstance(value, Iterator | DataLoader) or kind.__module__.startswith("accelerate.")
        if not known and inside[-1] is None:
            state: Any = object.__getstate__(value)
            parts.append(placeless(value) if state is None else state)
    if isinstance(parts, str):
        digest.update(f"{len(parts)} {parts}".encode())
    elif isinstance(parts, list | tuple):
        digest.update(f"{len(parts)}[".encode())
        for part in parts:
            feed(digest, part, around)
    else:
        feed(digest, parts, around)


def placeless(value: Any) -> str:
    """Its repr, without places in memory."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def attributes(module: nn.Module) -> dict[str, Any]:
    """What modules of one's own classes hold beside parameters, buffers and modules."""
    libraries = ("torch.", "transformers.")  # whose modules show them in their repr, or have a config
    own = [each for each in module.named_modules() if not type(each[1]).__module__.startswith(libraries)]
    held = {f"{name}.{key}": each for name, part in own for key, each in vars(part).items() if key[0] != "_"}
    return {name: each for name, each in held.items() if not name.endswith(".training")}


def reading(tokenizer: Any) -> list[Any]:
    """What a tokenizer's ids depend on: its vocabulary, its rules, and how texts are laid out. Padding and truncation
    among the rules are what its last call had set."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules: Any = {} if backend is None else json.loads(backend.to_str())
    if backend is None:  # its class has the rules, of which these are the settings
        settings = getattr(tokenizer, "init_kwargs", {})
        rules = {name: value for name, value in settings.items() if isinstance(value, bool | int | float)}
    told = {name: str(getattr(tokenizer, name, None)) for name in READING}
    rules |= {"padding": None, "truncation": None}
    return [dict(tokenizer.get_vocab()), json.dumps(rules, sort_keys=True), told]


def held(cell: Any) -> Any:
    """What a function has from around it. Of an array of floats, such as a teacher's answers, the shape, since machines
    compute them differently in the last digit."""
    try:
        content = cell.cell_contents
    except ValueError:  # still empty
        return None
    computed = str(getattr(content, "dtype", "")).rpartition(".")[2].startswith(("float", "bfloat"))
    return tuple(content.shape) if computed and hasattr(content, "shape") else content


def mend(folder: str | Path, of: Mapping[str, Any], own: Mapping[str, Any], write: bool) -> str | None:
    """Where a killed run left an unfinished last line in runs.jsonl: takes it out if `write`, and says so. `own`: what
    runs of a method belong to beside `of`, by its name.

    Raises ValueError for any other line that is no JSON, and for runs of something else, with the line's number.
    """
    path = Path(folder) / RUNS
    data = path.read_bytes() if path.is_file() else b""
    lines = data.splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            run = parsed(line)
        except ValueError as error:
            if number < len(lines):
                raise ValueError(
                    f"{path}, line {number}, is no JSON ({error}): take it out, or give a new folder"
                ) from error
            if write:
                with path.open("r+b") as file:
                    file.truncate(len(data) - len(line))
            return f"{path}, line {number}, was not finished: it is dropped, and its run is made again"
        theirs: Any = run.get("of") if isinstance(run, dict) else None
        ours = {**of, **own.get(str(run["method"]), {})} if isinstance(theirs, dict) and "method" in run else {}
        if other := [key for key in ours if theirs.get(key) != ours[key]]:
            listed = "; ".join(f"{key}: {theirs.get(key)!r:.80}, not {ours[key]!r:.80}" for key in other)
            raise ValueError(f"{path}, line {number}, holds runs of something else ({listed}): give a new folder")
    if write and data and not data.endswith(b"\n"):  # whole but for its end
        with path.open("ab") as file:
            file.write(b"\n")
    return None


def once(runs: Comparison) -> Comparison:
    """The first run of each configuration, method and seed: two processes may have made the same."""
    first: dict[Any, Mapping[str, Any]] = {}
    for run in runs.runs:
        first.setdefault((run["config"], run["method"], "" if run["method"] == "teacher" else run["seed"]), run)
    return Comparison(tuple(first.values()))
