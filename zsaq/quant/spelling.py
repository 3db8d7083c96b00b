"""Configurations as short texts.

    w<bits>a<bits>[e<bits>][h<bits>][g<size> or b<size>][-<levels>]

`w`: weights, `a`: activations, dynamic per token; 16 leaves that side in floats. `g`: weights in groups of that size
along the input dimension; `b`: weights and activations both, which is the rule of ONNX Runtime's kernels for few bits.
`e`: the token table, `h`: the head, each of their rows with a scale. 16 leaves the table in floats; without an `e` it
has 8 bits, unless it is tied to a head. Without an `h` the head stays in floats. Where a model ties them, both read the
same codes, so that `e` or `h` speaks for both.
"""

import re
from typing import Any, Final

from zsaq.quant.grid import CODEBOOKS, Grid, codebook_bits

LEVELS: Final = "|".join(("integer", *CODEBOOKS))
FORM: Final = (
    f"w<bits>a<bits>[e<bits>][h<bits>][g<group size> or b<block size>][-({LEVELS})], "
    "for example w2a8, w4a8g128, w3a16, w2a8-ternary, w2a8e4, w4a16e8h8g32, w4a8b32"
)


def read(text: Any) -> dict[str, Any]:
    """The fields of a QuantConfig that a text names. Raises ValueError for one of another form."""
    match = re.fullmatch(
        rf"w([1-9]\d?)a([1-9]\d?)(?:e([1-9]\d?))?(?:h([1-9]\d?))?(?:([gb])([1-9]\d{{0,8}}))?(?:-({LEVELS}))?",
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
    table = int(match[3] or (16 if weights == 16 else 8))
    levels = match[7] or ("half" if weights == 2 else "integer")
    if levels != "integer" and weights != codebook_bits(levels):
        raise ValueError(f"{text!r}: only {codebook_bits(levels)}-bit weights have {levels} levels; the form is {FORM}")
    size = int(match[6]) if match[5] else "channel"
    return {
        "weight": None if weights == 16 else Grid(weights, per=size, levels=levels),
        "input": None if inputs == 16 else Grid(inputs, per=int(match[6]) if match[5] == "b" else "token"),
        "embedding": None if table == 16 else Grid(table),
        "head": Grid(int(match[4])) if match[4] else None,
        "spare_tied": match[3] is None,
    }
