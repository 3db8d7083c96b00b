"""Configurations as short texts.

    w<bits>a<bits>[s][e<bits>][h<bits>][g<size> or b<size>][-<levels>][-s16]

`w`: weights, `a`: activations; 16 leaves that side in floats. Activations have a scale for each token, found as it
passes; `s`: one for each layer instead, which is found once (static). `g`: weights in groups of that size along the
input dimension; `b`: weights and activations both, which is the rule of ONNX Runtime's kernels for few bits.
`e`: the token table, `h`: the head, each of their rows with a scale. 16 leaves the table in floats; without an `e` it
has 8 bits, unless it is tied to a head. Without an `h` the head stays in floats. Where a model ties them, both read the
same codes, so that `e` or `h` speaks for both. Levels: of the weights, a codebook's name, or a format that names its
blocks and their scales too (`BLOCKED`). `-s16`: all scales are of float16.
"""

import re
from dataclasses import replace
from typing import Any, Final

from zsaq.quant.codebooks import CODEBOOKS, codebook_bits
from zsaq.quant.grid import Grid

BLOCKED: Final = {
    "mxfp4": Grid(4, per=32, levels="fp4", scales="e8m0"),  # OCP Microscaling Formats 1.0
    "nvfp4": Grid(4, per=16, levels="fp4", scales="e4m3"),  # NVIDIA 2025, arXiv 2509.25149
}
LEVELS: Final = "|".join(("integer", *CODEBOOKS, *BLOCKED))
FORM: Final = (
    "w<bits>a<bits>[s for static activations][e<bits>][h<bits>][g<group size> or b<block size>]"
    f"[-({LEVELS})][-s16 for scales of float16], for example w2a8, w2a8s, w4a8g128, w3a16, w2a8-ternary, w2a8e4, "
    "w4a8se4, w4a16e8h8g32, w4a8b32, w4a16g64-nf4, w4a16-mxfp4"
)


def read(text: Any) -> dict[str, Any]:
    """The fields of a QuantConfig that a text names. Raises ValueError for one of another form."""
    bits = r"[1-9]\d?"
    match = re.fullmatch(
        rf"w(?P<w>{bits})a(?P<a>{bits})(?P<s>s)?(?:e(?P<e>{bits}))?(?:h(?P<h>{bits}))?"
        rf"(?:(?P<kind>[gb])(?P<size>[1-9]\d{{0,8}}))?(?:-(?P<levels>{LEVELS}))?(?P<s16>-s16)?",
        str(text).strip().lower(),
        re.ASCII,  # digits of other scripts are no digits here
    )
    widths = {int(match[name] or 8) for name in "waeh"} if match else set()
    if not match or not widths <= {*range(2, 9), 16} or (match["kind"] and match["w"] == "16"):
        raise ValueError(f"{text!r} is no quantization; the form is {FORM}; bits are 2 to 8, or 16 for floats")
    if match["h"] == "16":
        raise ValueError(f"{text!r}: a head that no h names stays in floats; leave h16 out")
    table = int(match["e"] or (16 if match["w"] == "16" else 8))
    scales = "float16" if match["s16"] else "float32"
    return {
        "weight": weight(str(text), match),
        "input": inputs(str(text), match),
        "embedding": None if table == 16 else Grid(table, scales=scales),
        "head": Grid(int(match["h"]), scales=scales) if match["h"] else None,
        "spare_tied": match["e"] is None,
    }


def inputs(text: str, match: re.Match[str]) -> Grid | None:
    """The activations' grid. Raises ValueError for floats with ranges, and for two kinds of ranges."""
    blocks = match["size"] if match["kind"] == "b" else None
    if match["a"] == "16":
        if match["s"]:
            raise ValueError(f"{text!r}: activations in floats have no range, static or not; leave the s out")
        if blocks:
            raise ValueError(f"{text!r}: activations in floats have no blocks; write g{blocks} for groups of weights")
        return None
    if match["s"] and blocks:
        raise ValueError(
            f"{text!r}: static activations have one range and no blocks; write g{blocks} for groups of weights, or "
            "leave the s out"
        )
    return Grid(int(match["a"]), per="tensor" if match["s"] else int(blocks) if blocks else "token")


def weight(text: str, match: re.Match[str]) -> Grid | None:
    """The weights' grid. Raises ValueError for levels of other bits or blocks than the text's."""
    bits, size = int(match["w"]), int(match["size"]) if match["size"] else None
    levels = match["levels"] or ("half" if bits == 2 else "integer")
    blocked = BLOCKED.get(levels)
    fitting = blocked.bits if blocked else bits if levels == "integer" else codebook_bits(levels)
    if bits != fitting:
        raise ValueError(f"{text!r}: only {fitting}-bit weights have {levels} levels; the form is {FORM}")
    if bits == 16:
        return None
    if blocked is None:
        return Grid(bits, per=size or "channel", levels=levels, scales="float16" if match["s16"] else "float32")
    if size not in (None, blocked.per):
        raise ValueError(f"{text!r}: {levels} has blocks of {blocked.per}; leave {match['kind']}{size} out")
    if match["s16"]:
        raise ValueError(f"{text!r}: {levels} has scales of its own, {blocked.scaling.name}; leave -s16 out")
    return replace(blocked)
