"""What kept runs are known by: hashes of the content of whatever was given."""

import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from logging import Logger
from operator import length_hint
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Final

import torch
from torch import nn
from torch.utils.data import DataLoader

from zsaq.io.checksums import fingerprint

PLAIN: Final = (str, bytes, bool, int, float, Path, type(None))
DATA: Final = (list, tuple, set, frozenset, Mapping, torch.Tensor)
READING: Final = (  # what ids depend on beside a tokenizer's own rules
    *("model_max_length", "padding_side", "truncation_side", "chat_template", "model_input_names"),
    *("special_tokens_map", "clean_up_tokenization_spaces"),
)
PASSING: Final = ("_name_or_path", "name_or_path", "transformers_version")  # of a config: not what the model computes
# Whose objects hold where a process runs and how far it is: they are known by their class, and so are the user's that
# derive from them.
RUNNING: Final = ("accelerate", "random", "rich", "threading", "tqdm")


def told(value: Any) -> str:
    """A value in a key: plain ones as they are, functions by module and name, all others as a hash of their content;
    a function that was made in another by what it holds from there, too."""
    if value is None or isinstance(value, str | bool | int | float):
        return str(value)
    own = getattr(value, "__qualname__", None)
    plain = own and "<" not in own and not hasattr(value, "__self__")
    return f"{value.__module__}.{own}" if plain else content(value)[:16]


def told_model(source: Any) -> str:
    """A model that is named by a path or id: a folder by the hash of its files, an id as it is; else as `told`."""
    if isinstance(source, str | Path) and (folder := Path(os.path.expanduser(source))).is_dir():
        return fingerprint(folder)[:16]
    return told(str(source) if isinstance(source, Path) else source)


def content(value: Any) -> str:
    """The hash of a value: of an object of all that it holds, each object read once, of an iterator of its class and
    length, of a loader of its data set and length, of what runs (`RUNNING`, a device) of its class.

    An object within another is a hash of its own in it, the same wherever it is met; what holds itself is there the
    number of steps back to it. Data that no object holds (batches) is read into the one hash.
    """
    top = hashlib.sha256()
    known: dict[int, tuple[Any, bytes]] = {}  # hashes by id, with the object, so that no other has its id
    depths: dict[int, int] = {}  # of what is being read
    levels: list[tuple[Any, Any, Iterator[Any]]] = [(None, top, iter((value,)))]
    while levels:
        around, digest, parts = levels[-1]
        for part in parts:
            if isinstance(part, PLAIN):
                opened(digest, part)
            elif id(part) in known:
                digest.update(known[id(part)][1])
            elif id(part) in depths:
                digest.update(f"^{len(levels) - depths[id(part)]}".encode())
            else:
                data = isinstance(part, DATA) or hasattr(part, "tobytes")
                own = digest if digest is top and (data or part is value) else hashlib.sha256()
                depths[id(part)] = len(levels)
                levels.append((part, own, iter(opened(own, part))))
                break
        else:
            levels.pop()
            depths.pop(id(around), None)
            if levels and digest is not levels[-1][1]:
                known[id(around)] = around, digest.digest()
                levels[-1][1].update(digest.digest())
    return top.hexdigest()


def opened(digest: Any, value: Any) -> Sequence[Any]:
    """Feeds a value's class, or name, and what it is by itself; answers what else it holds."""
    own = value if hasattr(value, "__qualname__") else type(value)
    digest.update(f"{getattr(own, '__module__', '')}.{own.__qualname__}|".encode())
    if isinstance(value, torch.Tensor):
        plain = value.detach().cpu().contiguous()
        digest.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy())
        return ()
    parts = parts_of(value)
    if isinstance(parts, str):
        digest.update(f"{len(parts)} {parts}".encode())
        return ()
    if isinstance(parts, dict):
        return (parts,)
    if parts is not None:
        digest.update(f"{len(parts)}[".encode())
    return parts or ()


def parts_of(value: Any) -> str | dict[str, Any] | Sequence[Any] | None:
    """What a value is known by beside its class or name."""
    kind = type(value)
    if isinstance(value, PLAIN):
        return repr(value)
    if isinstance(value, type | torch.device):
        return None
    if isinstance(value, nn.Module):
        config = getattr(value, "config", None)
        settings = config.to_dict() if hasattr(config, "to_dict") else {}  # pyright: ignore
        shown = {key: str(each) for key, each in settings.items() if key not in PASSING}
        more = {} if settings else attributes(value)
        return [placeless(value), shown, dict(value.state_dict())] + [more] * bool(more)
    if isinstance(value, Mapping):
        return [part for key in sorted(value, key=str) for part in (key, value[key])]
    if isinstance(value, list | tuple):
        return value
    if isinstance(value, set | frozenset):
        return sorted(map(placeless, value))
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, CodeType):
        return [value.co_code, value.co_names, value.co_consts]
    if isinstance(value, FunctionType):
        parts = [value.__defaults__, value.__code__ if value.__name__ == "<lambda>" else None]
        return (
            parts
            + [held(cell) for cell in value.__closure__ or ()]
            + [value.__kwdefaults__] * bool(value.__kwdefaults__)
        )
    if isinstance(value, MethodType):
        return [value.__self__]
    if isinstance(value, ModuleType | Logger):
        return getattr(value, "__name__", None) or value.name
    if any(base.__module__.partition(".")[0] in RUNNING for base in kind.__mro__):
        return None
    if dataclasses.is_dataclass(kind) and not says_itself(kind):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.compare}
    if hasattr(value, "tobytes"):  # an array, an image
        return [getattr(value, "shape", getattr(value, "size", None)), value.tobytes()]
    if hasattr(value, "get_vocab"):
        return reading(value)
    if hasattr(value, "to_dict"):
        return str(sorted(item for item in value.to_dict().items() if item[0] not in PASSING))
    inside = [getattr(value, name, None) for name in ("tensors", "dataset", "_fingerprint")]
    parts = [length_hint(value, -1) if hasattr(kind, "__len__") else None, *inside]
    if not isinstance(value, Iterator | DataLoader) and inside[-1] is None:
        parts.append(placeless(value) if (state := state_of(value)) is None else state)
    return parts


def placeless(value: Any) -> str:
    """Its repr, without places in memory."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def says_itself(kind: type) -> bool:
    """Whether a class has a `__getstate__` of its own (frozen dataclasses with slots are given one)."""
    own = kind.__getstate__
    return isinstance(own, FunctionType) and own.__module__ != "dataclasses"


def state_of(value: Any) -> Any:
    """What an object holds, as its class has it pickled, without what is computed on its first use; None for nothing
    that can be told."""
    kind = type(value)
    if says_itself(kind):
        with suppress(Exception):  # what is not to be pickled refuses it
            return value.__getstate__()
        return None
    state: Any = object.__getstate__(value)
    if not isinstance(state, dict):
        return state
    computed = functools.cached_property
    return {name: each for name, each in state.items() if not isinstance(getattr(kind, name, None), computed)}


def attributes(module: nn.Module) -> dict[str, Any]:
    """What modules of one's own classes hold beside parameters, buffers and modules; without tensors, which are noted
    while they run."""
    libraries = ("torch.", "transformers.")  # whose modules show them in their repr, or have a config
    own = [each for each in module.named_modules() if not type(each[1]).__module__.startswith(libraries)]
    states = {name: state_of(part) for name, part in own}
    held = {
        f"{name}.{key}": each
        for name, state in states.items()
        if isinstance(state, dict)
        for key, each in state.items()
        if key[0] != "_" and key != "training"
    }
    return {name: each for name, each in held.items() if not (each is None or isinstance(each, torch.Tensor))}


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
