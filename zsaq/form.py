"""JSON that nobody has checked, against the dataclass that it is meant for."""

import dataclasses
import math
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Final, get_args, get_origin

AGAIN: Final = "run it again with this version of zsaq"


def checked(data: Any, kind: type) -> dict[str, Any]:
    """`data` as keyword arguments of the dataclass `kind`, the form of each value checked. Raises ValueError."""
    fields = {f.name: f for f in dataclasses.fields(kind)}
    if not isinstance(data, dict):
        raise ValueError(f"{kind.__name__} is {data!r:.200}; give an object with the keys {list(fields)}; {AGAIN}")
    if unknown := [key for key in data if key not in fields]:
        raise ValueError(f"{kind.__name__} has the unknown keys {unknown!r:.200}; allowed are {list(fields)}; {AGAIN}")
    for name, f in fields.items():
        needed = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if needed and name not in data:
            raise ValueError(f"{kind.__name__} has no {name}; {AGAIN}")
        if name in data and not fits(data[name], f.type):
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
