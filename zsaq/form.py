"""JSON that nobody has checked: read with a limit, and held against the dataclass that it is meant for."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, get_args, get_origin

AGAIN: Final = "run it again with this version of zsaq"
LARGEST: Final = 2**24  # bytes of a file that is read: far above a hundred thousand names

DEEPEST: Final = 64  # levels of JSON
TOO_DEEP: Final = f"it is nested deeper than {DEEPEST} levels, which nobody writes"


def parsed(text: str | bytes) -> Any:
    """What JSON says. Raises ValueError for what is none, and for what is nested so deep that walks through it fail."""
    try:
        data = json.loads(text)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    level, depth = [data], 0
    while level := [part for each in level if isinstance(each, dict | list) for part in parts_of(each)]:
        depth += 1
        if depth > DEEPEST:
            raise ValueError(TOO_DEEP)
    return data


def parts_of(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def read_json(path: Path, largest: int = LARGEST) -> dict[str, Any]:
    """The object in a file of JSON. Raises ValueError for no file, one that is too large or too deep, and for anything
    else than one object."""
    try:
        if path.exists() and not path.is_file():  # a pipe would never end
            raise ValueError("it is no regular file")
        if path.stat().st_size > largest:
            raise ValueError(f"it has {path.stat().st_size} bytes, more than {largest}")
        data = parsed(path.read_bytes())
    except OSError as error:
        raise ValueError(str(error)) from error
    if not isinstance(data, dict):
        raise ValueError("it holds no JSON object")
    return data


def checked(data: Any, kind: type) -> dict[str, Any]:
    """`data` as keyword arguments of the dataclass `kind`: complete, the form of each value checked. Raises ValueError.

    What is written is whole, with what is not known as null; a key that lacks would take a default that nobody meant.
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}
    if not isinstance(data, dict):
        raise ValueError(f"{kind.__name__} is {data!r:.200}; give an object with the keys {list(fields)}; {AGAIN}")
    if unknown := [key for key in data if key not in fields]:
        raise ValueError(f"{kind.__name__} has the unknown keys {unknown!r:.200}; allowed are {list(fields)}; {AGAIN}")
    if missing := [name for name in fields if name not in data]:
        raise ValueError(f"{kind.__name__} has no {', '.join(missing)}; {AGAIN}")
    for name, f in fields.items():
        if not fits(data[name], f.type):
            raise ValueError(f"{kind.__name__}.{name} is {data[name]!r:.200}, which is no {f.type}; {AGAIN}")
    return dict(data)


def fits(value: Any, annotation: Any) -> bool:
    """Whether JSON holds there what a field of that annotation takes, once it is made of it."""
    if isinstance(annotation, UnionType):
        return any(fits(value, part) for part in get_args(annotation))
    origin, parts = get_origin(annotation) or annotation, get_args(annotation)
    if origin is Any or origin is NoneType:
        return origin is Any or value is None
    if origin is Mapping:
        return isinstance(value, dict) and all(fits(v, parts[1]) for v in value.values())
    if origin is tuple:
        return isinstance(value, list) and (dataclasses.is_dataclass(parts[0]) or all(fits(v, parts[0]) for v in value))
    if dataclasses.is_dataclass(origin):
        return isinstance(value, dict)
    if isinstance(value, bool) or origin is bool:
        return isinstance(value, bool) and origin is bool
    if origin is float:
        return isinstance(value, int | float) and abs(value) < math.inf
    return isinstance(value, origin)
