"""A grid is a codebook: the numbers onto which a tensor is rounded, in units of a scale, and their integer codes."""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np

from zsaq.quant.codebooks import CODEBOOKS, codebook_bits
from zsaq.quant.scales import FORMATS, Scales

Per = Literal["tensor", "channel", "token"] | int


@dataclass(frozen=True)
class Grid:
    """Onto which numbers a tensor is rounded.

    A value is `values[code - low]` times a scale, less a zero where the grid is asymmetric. `per` says which entries
    share a scale: the whole "tensor", a "channel" (first dimension: an output row), a "token" (the last dimension is
    one group), or groups of that many entries along the input (last) dimension; a convolution's is its flattened
    [in * height * width]. `levels`: "integer", or a row of `CODEBOOKS`, by name and never just "2-bit": "half" {-1.5,
    -.5, .5, 1.5} (default of `parse` at 2 bits for its quality), "ternary" {-1, 0, 1}; "integer" of 2 bits is {-2, -1,
    0, 1}. `scales`: the format of the scales, a row of `zsaq.quant.scales.FORMATS`: "float32", "float16", "e8m0"
    (powers of two), "e4m3" (8-bit floats times one float of the whole tensor). Raises ValueError for anything else.
    """

    bits: int = 4
    symmetric: bool = True
    per: Per = "channel"
    levels: str = "integer"
    scales: str = "float32"

    def __post_init__(self) -> None:
        if type(self.bits) is not int or not 2 <= self.bits <= 8:
            raise ValueError(f"bits is {self.bits!r}; give an integer from 2 to 8")
        if type(self.symmetric) is not bool:
            raise ValueError(f"symmetric is {self.symmetric!r}; give true or false")
        if self.per not in ("tensor", "channel", "token") and (type(self.per) is not int or self.per < 1):
            raise ValueError(f"per is {self.per!r}; give 'tensor', 'channel', 'token' or a positive group size")
        if not isinstance(self.scales, str) or self.scales not in FORMATS:
            raise ValueError(f"scales is {self.scales!r}; give one of {tuple(FORMATS)}")
        if self.scales in ("e8m0", "e4m3") and not self.symmetric:
            raise ValueError(f"scales {self.scales!r} are for symmetric grids; give scales='float16' or 'float32'")
        if self.levels == "integer":
            return
        if not isinstance(self.levels, str) or self.levels not in CODEBOOKS:
            raise ValueError(f"levels is {self.levels!r}; give one of {('integer', *CODEBOOKS)}")
        if not self.symmetric or self.bits != codebook_bits(self.levels):
            raise ValueError(
                f"levels {self.levels!r} are for symmetric {codebook_bits(self.levels)}-bit grids; this one has bits="
                f"{self.bits}, symmetric={self.symmetric}"
            )

    @cached_property
    def values(self) -> tuple[float, ...]:
        """The codebook, by ascending code: numbers in units of the scale, of an asymmetric grid with its zero in."""
        if self.levels != "integer":
            return CODEBOOKS[self.levels]
        first = -(2 ** (self.bits - 1)) if self.symmetric else 0
        return tuple(float(code) for code in range(first, first + 2**self.bits))

    @cached_property
    def uniform(self) -> bool:
        """Whether a value is code - zero; where it is not, it is looked up in the codebook."""
        return all(after - before == 1 for before, after in pairwise(self.values))

    @cached_property
    def low(self) -> int:
        """Smallest code."""
        return math.floor(self.values[0]) if self.uniform else 0

    @cached_property
    def high(self) -> int:
        """Largest code."""
        return self.low + len(self.values) - 1

    @cached_property
    def zero(self) -> float:
        """The fixed zero of a symmetric grid: -0.5 puts the levels at half integers."""
        return self.low - self.values[0] if self.uniform else 0.0

    @cached_property
    def amplitude(self) -> float:
        """The multiple of the scale that min-max ranges put at the largest magnitude.

        The largest value, except on the 2-bit integer grid, which would lose a level: there 2 (DeepSpeed's choice).
        """
        return 2.0 if (self.symmetric, self.levels, self.bits) == (True, "integer", 2) else self.values[-1]

    @cached_property
    def edges(self) -> tuple[float, ...]:
        """The largest float32 that is rounded to each value but the last; of two values as near, to the one that stands
        an even number of values from zero, which is how floats round their ties."""
        book, middle = self.values, min(range(len(self.values)), key=lambda code: abs(self.values[code]))
        edges = []
        for code, (below, above) in enumerate(pairwise(book)):
            mean = (below + above) / 2
            edge, down = np.float32(mean), np.float32(-np.inf)
            past = float(edge) > mean or (float(edge) == mean and (code - middle) % 2 == 1)
            edges.append(float(np.nextafter(edge, down) if past else edge))
        return tuple(edges)

    @cached_property
    def lopsided(self) -> bool:
        """Whether a negative scale makes another grid of it: one that reaches further to one side of zero than to the
        other. Then a scale may be negative, if its format allows."""
        return self.symmetric and self.uniform and self.values[0] != -self.values[-1] and self.scaling.signed

    @property
    def scaling(self) -> Scales:
        """The format of the scales."""
        return FORMATS[self.scales]

    @property
    def step(self) -> float:
        """The mean distance between neighbouring values."""
        return (self.values[-1] - self.values[0]) / (self.high - self.low)


def describe(grid: Grid | None) -> str:
    """In words: its bits, levels and what shares a scale."""
    if grid is None:
        return "float"
    kind = "" if grid.levels == "integer" else f" {grid.levels}"
    per = grid.per if isinstance(grid.per, str) else f"group of {grid.per}"
    scales = f", scales in {grid.scaling.name}" if grid.scaling.name else ""
    return f"{grid.bits}-bit{kind}{'' if grid.symmetric else ' asymmetric'} per {per}{scales}"
