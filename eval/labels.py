"""Which output of a model each class of the data is: by names, by numbers, or by an order that is assumed and told."""

import re
from collections.abc import Sequence
from typing import Any, Final

from transformers import PretrainedConfig

SYNSET: Final = re.compile(r"n\d{8}")
NUMBER: Final = re.compile(r"(\d{1,18})")


def natural(name: str) -> list[Any]:
    """A key that sorts numbers in names as numbers: 1, 2, 10."""
    return [int(part) if place % 2 else part for place, part in enumerate(NUMBER.split(name))]


def names_of(config: PretrainedConfig) -> list[str]:
    """What the model calls its outputs, in order; empty where they are but numbered: LABEL_0, or 0.

    Raises ValueError for an `id2label` whose numbers are not those of the outputs.
    """
    named: dict[Any, Any] = dict(config.id2label or {})
    if sorted(named) != list(range(len(named))):
        raise ValueError(
            f"id2label in the model's config.json names the outputs {sorted(named)[:5]} ...; number them from 0"
        )
    names = [str(named[number]) for number in range(len(named))]
    return [] if all(name in (f"LABEL_{i}", str(i)) for i, name in enumerate(names)) else names


def numbered(names: Sequence[str]) -> list[int] | None:
    """The numbers of names that differ in one number alone, as class_1 and class_2; None of others."""
    parts = [NUMBER.split(name) for name in names]
    alike = all(len(part) == 3 and part[::2] == parts[0][::2] for part in parts)
    return [int(part[1]) for part in parts] if alike else None


def class_order(names: tuple[str, ...] | None, *configs: PretrainedConfig) -> tuple[list[int], str | None]:
    """Which output of the model each label of the data is, and a note for people where that had to be assumed.

    `configs`: the model's, then its teacher's; the first that names its classes decides. Labels without names are
    outputs. Names are looked up in the model's id2label, without regard to case, blanks and leading zeros. Numbers that
    the outputs have are outputs; as many as there are outputs, counted from 1, stand for those in order. WordNet ids
    stand for the outputs in sorted order, as in ImageNet, and so do any names where the model names no classes, if
    there are as many as outputs; numbers in names sort as numbers. Raises ValueError for any other names.
    """
    outputs = list(range(configs[0].num_labels or 0))
    if names is None:
        return outputs, None
    own = next((found for config in configs if (found := names_of(config))), [])
    known, given = [_plain(name) for name in own], [_plain(name) for name in names]
    if given == known:
        return outputs, None
    numbers = None if known and all(name.isdecimal() for name in known) else numbered(given)
    if (known or numbers) and (twice := [n for n, plain in zip(names, given, strict=True) if given.count(plain) > 1]):
        raise ValueError(f"the data's classes {twice[:6]} are one name: give each class a name of its own")
    if all(name in known for name in given):
        return [known.index(name) for name in given], None
    if numbers and (not known or given[0].isdecimal()):
        plain, whole = given[0].isdecimal(), len(numbers) == len(outputs)
        if set(numbers) <= set(outputs) and (whole or plain):
            why = "numbers are taken for those of the outputs, which begin at 0"
            return numbers, None if plain and 0 in numbers else _assumed(why, names, numbers)
        if sorted(numbers) == [place + 1 for place in outputs]:
            order = [number - 1 for number in numbers]
            return order, _assumed("numbers are counted from 1", names, order)
    synsets = all(SYNSET.fullmatch(name) for name in given)
    if len(given) == len(outputs) and (not known or synsets):
        order = sorted(range(len(given)), key=lambda place: numbers[place]) if numbers else outputs
        order = [order.index(place) for place in outputs]
        why = "the data names WordNet ids" if known else "the model names no classes"
        return order, _assumed(f"{why}, and their own order is taken for that of the outputs", names, order)
    unknown = [name for name, plain in zip(names, given, strict=True) if known.count(plain) != 1]
    raise ValueError(
        f"the data has {len(names)} classes, the model {len(outputs)}; {unknown[:5]} are not among its names "
        f"{own[:5]} ...: name the folders as the model's id2label does, or by the numbers of its outputs"
    )


def _assumed(why: str, names: Sequence[str], order: Sequence[int]) -> str:
    pairs = sorted(zip(order, names, strict=True))
    few = pairs if len(pairs) < 4 else (*pairs[:2], pairs[-1])
    shown = ", ".join(f"{name} is output {place}" for place, name in few)
    return f"the order of the classes is assumed ({why}): {shown}; if that is wrong, so are the scores"


def _plain(name: str) -> str:
    name = " ".join(name.lower().replace("_", " ").split()).removeprefix("label ")
    return str(int(name)) if name.isdecimal() and len(name) <= 18 else name
