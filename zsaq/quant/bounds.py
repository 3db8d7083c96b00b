"""From the extremes of a group to its scale and zero."""

from typing import Final

import torch
from torch import Tensor

from zsaq.quant.codes import wide
from zsaq.quant.grid import Grid

TINY = 1e-8  # smallest scale: a group of zeros stays zeros
LEAST: Final = torch.tensor(TINY, dtype=torch.float32, device="cpu").item()  # as float32 holds it: a little less


def floored(scale: Tensor) -> Tensor:
    """`scale`, of float32 at least, and at least TINY."""
    return scale.clamp_min(TINY)


def apart(scale: Tensor) -> Tensor:
    """`scale`, at least TINY from zero, on its own side of it."""
    return torch.where(scale < 0, scale.clamp_max(-TINY), scale.clamp_min(TINY))


def from_bounds(lo: Tensor, hi: Tensor, grid: Grid) -> tuple[Tensor, Tensor | float]:
    """Scale and zero that cover [lo, hi]; zero is always on the grid."""
    lo, hi = wide(lo).clamp(max=0), wide(hi).clamp(min=0)
    if grid.symmetric:
        return in_format(torch.maximum(-lo, hi), grid), grid.zero
    scale = in_format(hi - lo, grid)
    return scale, torch.round(-lo / scale).clamp_(grid.low, grid.high)


def in_format(most: Tensor, grid: Grid) -> Tensor:
    """The scales, as their format holds them, whose multiple by the grid's amplitude is `most`."""
    scale = floored(grid.scaling.first(most, grid.amplitude))
    return grid.scaling.held(scale, grid.scaling.unit(scale))
