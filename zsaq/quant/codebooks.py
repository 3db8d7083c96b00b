"""The levels that have a name: the numbers of small floating-point formats, and others that are no integers."""

from statistics import NormalDist
from typing import Final

import numpy as np


def floats(exponent: int, mantissa: int, bias: int, most: float) -> tuple[float, ...]:
    """The distinct finite numbers of a format of one sign bit and that many bits of exponent and mantissa, up to
    `most`; where the exponent is 0 they are subnormal."""
    parts = 2**mantissa
    magnitudes = [
        (part / parts if power == 0 else 1 + part / parts) * 2.0 ** (max(power, 1) - bias)
        for power in range(2**exponent)
        for part in range(parts)
    ]
    above = [number for number in magnitudes if 0 < number <= most]
    return (*(-number for number in reversed(above)), 0.0, *above)


def normal_floats() -> tuple[float, ...]:
    """NormalFloat of 4 bits: quantiles of the normal distribution, as float32 holds them.

    8 of them evenly from the probability d to 1/2 and 9 from 1/2 to 1 - d, where zero is in both, in units of the
    largest (Dettmers et al. 2023, arXiv 2305.14314, eq. 4). d, which the paper leaves open, is half of the mean share
    of a level: 1/2 (1/32 + 1/30) (Yoshida 2023, arXiv 2306.06965).
    """
    edge = (1 / 32 + 1 / 30) / 2
    below = [edge + (0.5 - edge) * step / 7 for step in range(7)]
    above = [0.5 + (0.5 - edge) * step / 8 for step in range(1, 9)]
    quantile = NormalDist().inv_cdf
    numbers = [*map(quantile, below), 0.0, *map(quantile, above)]
    return tuple(float(np.float32(number / numbers[-1])) for number in numbers)


CODEBOOKS: Final[dict[str, tuple[float, ...]]] = {
    "half": (-1.5, -0.5, 0.5, 1.5),  # Liu et al. 2025, arXiv 2502.02631
    "ternary": (-1.0, 0.0, 1.0),  # Li et al. 2016, arXiv 1605.04711
    "nf4": normal_floats(),
    "fp4": floats(2, 1, 1, 6.0),  # E2M1 (OCP Microscaling Formats 1.0, table 5)
    "fp8": floats(4, 3, 7, 448.0),  # E4M3 without infinities (OCP 8-bit Floating Point 1.0)
}
"""Ascending, in units of the scale. A new number format of weights is a row here; what has a kernel of its own for
codebooks that are not evenly spaced reads `Grid.values`, and all else refuses them."""


def codebook_bits(levels: str) -> int:
    """How many bits the codes of a named codebook have."""
    return (len(CODEBOOKS[levels]) - 1).bit_length()
