"""JSON as a mistake or an enemy leaves it: a change takes one thing out, puts another in its place, or renames it."""

import copy
import math
import random
from collections.abc import Iterator
from typing import Any, Final

EVIL: Final = (
    *(None, True, False, 0, -1, 1.5, 2**70, 10**400, 1e308, math.nan, math.inf, -math.inf),
    *("", "x", "2", "<script>alert(1)</script>", "[a](javascript:b)", "a\nb\x1b[31m", "\ud800", "é" * 3000),
    *([], {}, [1], [[]], [None], {"a": 1}, {"": None}, {"a": {"b": [1, {"c": []}]}}),
)
NAMES: Final = ("", "x", "name", "\ud800", "<b>")


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands below JSON's top, as keys and indices."""
    if path:
        yield path
    for key, part in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield from places(part, (*path, key))


def mutated(data: Any, rng: random.Random) -> Any:
    """A copy with one to three changes."""
    data = copy.deepcopy(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        *path, key = rng.choice(list(places(data)) or [("x",)])
        parent = data
        for step in path:
            parent = parent[step]
        what = rng.choice(("put", "put", "put", "take", "rename"))
        if what == "put":
            parent[key] = copy.deepcopy(rng.choice(EVIL))
        elif what == "take":
            del parent[key]
        elif isinstance(parent, dict):
            parent[rng.choice(NAMES)] = parent.pop(key)
        else:
            parent.append(parent[key])
    return data
