"""Configurations as short texts.

    w<bits>a<bits>[e<bits>][h<bits>][g<size> or b<size>][-<levels>][-s16]

`w`: weights, `a`: activations, dynamic per token; 16 leaves that side in floats. `g`: weights in groups of that size
along the input dimension; `b`: weights and activations both, which is the rule of ONNX Runtime's kernels for few bits.
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
    f"w<bits>a<bits>[e<bits>][h<bits>][g<group size> or b<block size>][-({LEVELS})][-s16 for scales of float16], "
    "for example w2a8, w4a8g128, w3a16, w2a8-ternary, w2a8e4, w4a16e8h8g32, w4a8b32, w4a16g64-nf4, w4a16-mxfp4"
)


def read(text: Any) -> dict[str, Any]:
    """The fields of a QuantConfig that a text names. Raises ValueError for one of another form."""
    bits, size = r"([1-9]\d?)", r"([1-9]\d{0,8})"
    match = re.fullmatch(
        rf"w{bits}a{bits}(?:e{bits})?(?:h{bits})?(?:([gb]){size})?(?:-({LEVELS}))?(-s16)?",
        str(text).strip().lower(),
        re.ASCII,  # digits of other scripts are no digits here
    )
    widths = {int(match[i] or 8) for i in (1, 2, 3, 4)} if match else set()
    if not match or not widths <= {*range(2, 9), 16} or (match[5] and int(match[1]) == 16):
        raise ValueError(f"{text!r} is no quantization; the form is {FORM}; bits are 2 to 8, or 16 for floats")
    weights, inputs = int(match[1]), int(match[2])
    if match[4] == "16":
        raise ValueError(f"{text!r}: a head that no h names stays in floats; leave h16 out")
    if match[5] == "b" and inputs == 16:
        raise ValueError(f"{text!r}: activations in floats have no blocks; write g{match[6]} for groups of weights")
    table, scales = int(match[3] or (16 if weights == 16 else 8)), "float16" if match[8] else "float32"
    block = int(match[6]) if match[5] == "b" else "token"
    return {
        "weight": weight(str(text), match),
        "input": None if inputs == 16 else Grid(inputs, per=block),
        "embedding": None if table == 16 else Grid(table, scales=scales),
        "head": Grid(int(match[4]), scales=scales) if match[4] else None,
        "spare_tied": match[3] is None,
    }


def weight(text: str, match: re.Match[str]) -> Grid | None:
    """The weights' grid. Raises ValueError for levels of other bits or blocks than the text's."""
    bits, size = int(match[1]), int(match[6]) if match[5] else None
    levels = match[7] or ("half" if bits == 2 else "integer")
    blocked = BLOCKED.get(levels)
    fitting = blocked.bits if blocked else bits if levels == "integer" else codebook_bits(levels)
    if bits != fitting:
        raise ValueError(f"{text!r}: only {fitting}-bit weights have {levels} levels; the form is {FORM}")
    if bits == 16:
        return None
    if blocked is None:
        return Grid(bits, per=size or "channel", levels=levels, scales="float16" if match[8] else "float32")
    if size not in (None, blocked.per):
        raise ValueError(f"{text!r}: {levels} has blocks of {blocked.per}; leave {match[5]}{size} out")
    if match[8]:
        raise ValueError(f"{text!r}: {levels} has scales of its own, {blocked.scaling.name}; leave -s16 out")
    return replace(blocked)
