"""A grid is a codebook: the numbers onto which a tensor is rounded, in units of a scale, and their integer codes."""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Final, Literal

Per = Literal["tensor", "channel", "token"] | int

CODEBOOKS: Final[dict[str, tuple[float, ...]]] = {
    "half": (-1.5, -0.5, 0.5, 1.5),  # Liu et al. 2025, arXiv 2502.02631
    "ternary": (-1.0, 0.0, 1.0),  # Li et al. 2016, arXiv 1605.04711
}
"""The levels that have a name, ascending, in units of the scale. A new number format of weights is a row here; what has
a kernel of its own for codebooks that are not evenly spaced reads `Grid.values`, and all else refuses them."""


@dataclass(frozen=True)
class Grid:
    """Onto which numbers a tensor is rounded.

    A value is `values[code - low]` times a scale, less a zero where the grid is asymmetric. `per` says which entries
    share a scale: the whole "tensor", a "channel" (first dimension: an output row), a "token" (the last dimension is
    one group), or groups of that many entries along the input (last) dimension; a convolution's is its flattened
    [in * height * width]. `levels`: "integer", or a row of `CODEBOOKS`, by name and never just "2-bit": "half" {-1.5,
    -.5, .5, 1.5} (default of `parse` at 2 bits for its quality), "ternary" {-1, 0, 1}; "integer" of 2 bits is {-2, -1,
    0, 1}. Raises ValueError for anything else.
    """

    bits: int = 4
    symmetric: bool = True
    per: Per = "channel"
    levels: str = "integer"

    def __post_init__(self) -> None:
        if type(self.bits) is not int or not 2 <= self.bits <= 8:
            raise ValueError(f"bits is {self.bits!r}; give an integer from 2 to 8")
        if type(self.symmetric) is not bool:
            raise ValueError(f"symmetric is {self.symmetric!r}; give true or false")
        if self.per not in ("tensor", "channel", "token") and (type(self.per) is not int or self.per < 1):
            raise ValueError(f"per is {self.per!r}; give 'tensor', 'channel', 'token' or a positive group size")
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

    @property
    def step(self) -> float:
        """The mean distance between neighbouring values."""
        return (self.values[-1] - self.values[0]) / (self.high - self.low)


def codebook_bits(levels: str) -> int:
    """How many bits the codes of a named codebook have."""
    return (len(CODEBOOKS[levels]) - 1).bit_length()


def describe(grid: Grid | None) -> str:
    """In words: its bits, levels and what shares a scale."""
    if grid is None:
        return "float"
    kind = "" if grid.levels == "integer" else f" {grid.levels}"
    per = grid.per if isinstance(grid.per, str) else f"group of {grid.per}"
    return f"{grid.bits}-bit{kind}{'' if grid.symmetric else ' asymmetric'} per {per}"
