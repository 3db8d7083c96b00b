"""A quantizer is a Grid and a Range: values in, the nearest grid values out, gradients straight through."""

import math
from typing import final

import torch
from torch import Tensor, nn

from zsaq.quant.codes import groups, nearest, round_to_grid, values_of, within
from zsaq.quant.grid import Grid
from zsaq.quant.ranges import Range


class Straight(torch.autograd.Function):
    """The nearest values times the scale; the gradient passes where the grid does not saturate (straight-through).

    With a trained scale its gradient is LSQ's (Esser et al. 2020, arXiv 1902.08153, eq. 3), scaled by
    1 / sqrt(n * amplitude) for n entries a scale.
    """

    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor, zero: Tensor | float, grid: Grid, saturates: bool) -> Tensor:
        ctx.grid, ctx.zero, ctx.saturates = grid, zero, saturates
        ctx.save_for_backward(x, scale)
        return nearest(x, scale, zero, grid).to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        if not ctx.saturates:
            return grad, None, None, None, None
        x, scale = ctx.saved_tensors
        grid, zero = ctx.grid, ctx.zero
        v = x / scale
        inside = within(v, zero, grid)
        slope = None
        if ctx.needs_input_grad[1]:
            error = values_of(round_to_grid(x, scale, zero, grid), zero, grid) - torch.where(inside, v, 0)
            slope = (grad * error).sum(-1, keepdim=True) / math.sqrt(x.shape[-1] * grid.amplitude)
        return torch.where(inside, grad, 0), slope, None, None, None


@final
class Quantizer(nn.Module):
    """Rounds onto `grid` within what `ranges` chooses. Vary it by its parts."""

    def __init__(self, grid: Grid, ranges: Range) -> None:
        super().__init__()
        self.grid, self.ranges = grid, ranges

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes in x's shape (int8; uint8 where none is negative), float scale and zero [..., 1] of the grouped x."""
        view = groups(x.detach(), self.grid)
        scale, zero = self.ranges(view, self.grid)
        codes = round_to_grid(view, scale, zero, self.grid)
        zero = torch.as_tensor(zero, dtype=scale.dtype, device=scale.device).expand_as(scale)
        return codes.to(torch.int8 if self.grid.low < 0 else torch.uint8).reshape(x.shape), scale.detach(), zero

    def forward(self, x: Tensor) -> Tensor:
        """x on the grid, same shape and dtype; while its range is observing, x itself."""
        view = groups(x, self.grid)
        if self.ranges.observing is not None:
            self.ranges.observing.observe(view)
            return x
        scale, zero = self.ranges(view, self.grid)
        if not torch.is_grad_enabled():  # a call of the function costs as much as what it calculates for a single token
            return nearest(view, scale, zero, self.grid).to(x.dtype).reshape(x.shape)
        return Straight.apply(view, scale, zero, self.grid, not self.ranges.covers(self.grid)).reshape(x.shape)

    def rows(self, x: Tensor, index: Tensor) -> Tensor:
        """Rows x [..., d] of a table, rounded with the scales of their `index` [...]. Needs ranges that are kept."""
        assert self.ranges.kept and self.grid.per not in ("tensor", "token")
        flat = index.flatten()
        view = x.reshape(len(flat), -1)
        view = view if self.grid.per == "channel" else groups(view, self.grid)
        scale, zero = self.ranges(view, self.grid)
        zero = zero[flat] if isinstance(zero, Tensor) else zero
        return Straight.apply(view, scale[flat], zero, self.grid, True).reshape(x.shape)
