"""What was given on the command line, as the library takes it."""

import dataclasses
import re
from typing import Any


def subject(
    model: str, generator: str | None, text_pair: bool, size: int | None, corpus: str | None,
    prompts: list[str] | None, base: str | None,
) -> dict[str, Any]:  # fmt: skip
    """What was given of a model's surroundings, as `zsaq.quantize` takes it. Raises ValueError for a MODEL that is the
    option of a method, which click takes for it."""
    if model.startswith("-"):
        raise ValueError(f"MODEL is {model!r}: give the model first, and the method's own options behind it")
    given = {
        "generator": generator, "text_pair": text_pair or None, "spec": size, "corpus": corpus,
        "prompts": prompts or None, "base": base,
    }  # fmt: skip
    return {name: value for name, value in given.items() if value is not None}


def with_ends(bits: str | None, embedding: int | None, head: int | None, target_mb: float | None = None) -> Any:
    """The bits with those of the table and the head. Raises ValueError for these without the others, beside a size, by
    which they are chosen as those of all layers are, and where the bits name others already."""
    import zsaq
    from zsaq.language.size import Size

    given = {name: width for name, width in (("embedding", embedding), ("head", head)) if width is not None}
    if not given:
        return bits
    flags = " and ".join(f"--{name} {width}" for name, width in given.items())
    sizes = [] if target_mb is None else [f"--target_mb {target_mb:g}"]
    sizes += [f"--bits {bits}"] if Size.of(bits) is not None else []
    if sizes:
        raise ValueError(
            f"{flags}: {sizes[0]} is a size, by which the bits of all layers are chosen, those of table and head too: "
            "leave them off, or give the bits of the layers, such as --bits w4a16g32"
        )
    if bits is None:
        raise ValueError(f"{flags}: table and head go with --bits: give those of the layers too, such as w4a16g32")
    config = zsaq.QuantConfig.parse(bits)
    named = {"head": config.head} if config.head else {}
    named |= {} if config.spare_tied else {"embedding": config.embedding}
    for name in given.keys() & named.keys():
        grid = named[name]
        own = 16 if grid is None else grid.bits
        if own != given[name]:
            raise ValueError(f"--{name} {given[name]}: --bits {bits} says {own} bits for it: give one of the two")
    scales = "float16" if bits.strip().lower().endswith("-s16") else "float32"
    grids: Any = {name: zsaq.Grid(width, scales=scales) for name, width in given.items()}
    return dataclasses.replace(config, **grids, spare_tied=False)


def numbers(text: str) -> list[int]:
    """Of "0,1,2". Raises ValueError for anything else."""
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise ValueError(f"--seeds is {text!r}; give numbers with commas, such as 0,1,2")
    return [int(number) for number in text.split(",")]
