"""Configurations in JSON: which keys are known, and that those of a saved one are all there."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Final

LATER: Final[dict[str, dict[str, Any]]] = {
    "QuantConfig": {"head": None, "spare_tied": True, "attention": None},
    "Grid": {"scales": "float32"},
    "Plan": {"headed": []},
}
"""Keys by their class that files of format 1 came to have, and what stands for them in files that are older."""


def known(data: Any, kind: type) -> dict[str, Any]:
    """A copy of JSON's object. Raises ValueError for what is none, and for keys that `kind` has no field for."""
    allowed = [f.name for f in dataclasses.fields(kind)]
    if not isinstance(data, dict):
        raise ValueError(f"{kind.__name__} is {data!r:.200}; give an object with the keys {allowed}")
    if unknown := [key for key in data if key not in allowed]:
        raise ValueError(f"{kind.__name__} has the unknown keys {unknown!r:.200}; allowed are {allowed}")
    return dict(data)


def whole(data: Any, kind: type, parts: Mapping[str, type]) -> Any:
    """JSON of a saved configuration, of class `kind` with `parts` of others, with its `LATER` keys, its rules too.

    Raises ValueError that names the keys that lack, as in rules.0.weight.bits; whatever else is wrong is left as it is.
    """
    data = filled(data, kind, parts)
    if isinstance(data, dict) and isinstance(rules := data.get("rules"), list):
        data["rules"] = [
            [rule[0], filled(rule[1], kind, parts)] if isinstance(rule, list) and len(rule) == 2 else rule
            for rule in rules
        ]
    if lost := list(lacking(data, kind, parts)):
        raise ValueError(
            f"the saved configuration has no {', '.join(lost[:8])}, and no default is assumed for what is saved: "
            "fetch the files again, or save the student again"
        )
    return data


def filled(data: Any, kind: type, parts: Mapping[str, type]) -> Any:
    """An object and its parts with the keys that are younger than it."""
    if not isinstance(data, dict):
        return data
    data = LATER[kind.__name__] | data
    return data | {name: filled(data[name], part, {}) for name, part in parts.items() if name in data}


def lacking(data: Any, kind: type, parts: Mapping[str, type], start: str = "") -> Iterator[str]:
    """The keys that an object lacks, its parts and rules too."""
    if not isinstance(data, dict):
        return
    yield from (f"{start}{f.name}" for f in dataclasses.fields(kind) if f.name not in data)
    for name, part in parts.items():
        yield from lacking(data.get(name), part, {}, f"{start}{name}.")
    for number, rule in enumerate(rules if isinstance(rules := data.get("rules"), list) else []):
        if isinstance(rule, list) and len(rule) == 2:
            yield from lacking(rule[1], kind, parts, f"{start}rules.{number}.")
