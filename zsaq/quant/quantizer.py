"""A quantizer is a Grid and a Range: values in, the nearest grid values out, gradients straight through.

Ranges choose scale and zero. They see a tensor as groups: shape [..., group], one scale for each group.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from zsaq.quant.config import Grid

TINY = 1e-8  # smallest scale: a group of zeros stays zeros


def floored(scale: Tensor) -> Tensor:
    """`scale`, at least TINY, or the smallest number that its dtype holds in full precision (float16's is larger)."""
    return scale.clamp_min(max(TINY, torch.finfo(scale.dtype).smallest_normal))


def groups(x: Tensor, grid: Grid) -> Tensor:
    """`x` viewed as [..., group]: entries of the last dimension share a scale.

    Raises ValueError if the group size does not divide the input dimension.
    """
    if grid.per == "tensor":
        return x.reshape(1, -1)
    if grid.per == "channel":
        return x.reshape(x.shape[0], -1)
    if grid.per == "token":
        return x
    assert isinstance(grid.per, int)
    width = x.shape[-1]
    if width % grid.per:
        raise ValueError(f"the group size {grid.per} does not divide the input dimension {width}; choose a divisor")
    return x.reshape(*x.shape[:-1], width // grid.per, grid.per)


def round_to_grid(x: Tensor, scale: Tensor, zero: Tensor | float, grid: Grid) -> Tensor:
    """The nearest codes, as floats: clamp(round(x / scale + zero), low, high)."""
    return torch.div(x, scale).add_(zero).round_().clamp_(grid.low, grid.high)


class Straight(torch.autograd.Function):
    """(code - zero) * scale; the gradient passes where the grid does not saturate (straight-through).

    With a trained scale its gradient is LSQ's (Esser et al. 2020, arXiv 1902.08153, eq. 3), scaled by
    1 / sqrt(n * amplitude) for n entries a scale.
    """

    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor, zero: Tensor | float, grid: Grid, saturates: bool) -> Tensor:
        ctx.grid, ctx.zero, ctx.saturates = grid, zero, saturates
        ctx.save_for_backward(x, scale)
        return ((round_to_grid(x, scale, zero, grid) - zero) * scale).to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        if not ctx.saturates:
            return grad, None, None, None, None
        x, scale = ctx.saved_tensors
        grid, zero = ctx.grid, ctx.zero
        v = x / scale
        inside = ((v + zero).round() >= grid.low) & ((v + zero).round() <= grid.high)
        slope = None
        if ctx.needs_input_grad[1]:
            error = (v + zero).round().clamp(grid.low, grid.high) - zero - torch.where(inside, v, 0)
            slope = (grad * error).sum(-1, keepdim=True) / math.sqrt(x.shape[-1] * grid.amplitude)
        return torch.where(inside, grad, 0), slope, None, None, None


class Range(nn.Module, ABC):
    """Chooses scale and zero for tensors seen as groups [..., group]."""

    @abstractmethod
    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor | float]:
        """Scale [..., 1] in x's dtype, and zero: [..., 1] if asymmetric, else the grid's own number."""


def from_bounds(lo: Tensor, hi: Tensor, grid: Grid) -> tuple[Tensor, Tensor | float]:
    """Scale and zero that cover [lo, hi]; zero is always on the grid."""
    lo, hi = lo.clamp(max=0), hi.clamp(min=0)
    if grid.symmetric:
        return floored(torch.maximum(-lo, hi) / grid.amplitude), grid.zero
    scale = floored((hi - lo) / grid.amplitude)
    return scale, torch.round(-lo / scale).clamp_(grid.low, grid.high)


@final
class MinMax(Range):
    """The extremes of what is seen now: dynamic for activations, abs-max for weights."""

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor | float]:
        x = x.detach()
        if grid.symmetric:
            return floored(x.abs().amax(-1, keepdim=True) / grid.amplitude), grid.zero
        return from_bounds(x.amin(-1, keepdim=True), x.amax(-1, keepdim=True), grid)


@final
class EMAMinMax(Range):
    """Static ranges: exponential means of the extremes, corrected for their start when read and never fed back.

    With momentum b and t updates the read value is m / (1 - b^t), as in Adam. `observing` is set by
    `zsaq.calibrate`; before any update, reading raises ValueError.
    """

    lo: Tensor
    hi: Tensor
    updates: Tensor

    def __init__(self, momentum: float = 0.95) -> None:
        super().__init__()
        self.momentum, self.observing = momentum, False
        self.register_buffer("lo", torch.zeros(1, 1, dtype=torch.float32))
        self.register_buffer("hi", torch.zeros(1, 1, dtype=torch.float32))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def _apply(self, fn, recurse: bool = True):
        lo, hi = self.lo, self.hi
        super()._apply(fn, recurse)
        # Moved with the model, never cast with it: half precision would move the whole grid.
        self.lo, self.hi = lo.to(self.lo.device), hi.to(self.hi.device)
        return self

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """One update with x [1, n], and with what the other processes see at the same time."""
        lo, hi = x.amin(-1, keepdim=True).to(self.lo), x.amax(-1, keepdim=True).to(self.hi)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(lo, dist.ReduceOp.MIN)
            dist.all_reduce(hi, dist.ReduceOp.MAX)
        self.lo.lerp_(lo, 1 - self.momentum)
        self.hi.lerp_(hi, 1 - self.momentum)
        self.updates += 1

    @torch.no_grad()
    def hold(self, lo: Tensor, hi: Tensor) -> None:
        """From now on what is read is [lo, hi] exactly: as after so many updates that no start is left to correct."""
        self.lo.copy_(lo)
        self.hi.copy_(hi)
        self.updates.fill_(math.ceil(math.log(2.0**-54) / math.log(self.momentum)) if self.momentum else 1)

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor | float]:
        if not int(self.updates):
            raise ValueError("a static range has seen nothing: run zsaq.calibrate(student, batches) first")
        share = 1 - self.momentum ** int(self.updates)
        scale, zero = from_bounds(self.lo / share, self.hi / share, grid)
        return scale.to(x.dtype), zero


@torch.no_grad()
def search(
    x: Tensor, grid: Grid, power: float = 2.0, factors: Sequence[float] | None = None
) -> tuple[Tensor, Tensor | float]:
    """The min-max scale times the factor that minimises sum |error|^power, for each group of x [..., group]."""
    widest, zero = MinMax()(x, grid)
    if factors is None:
        low = grid.bits < 5  # a row with outliers needs a small share of its maximum at 2 bits
        factors = torch.linspace(1.0, 0.15, 64).tolist() if low else torch.linspace(1.0, 0.85, 12).tolist()
    rows = max(1, 2**16 // x.shape[-1])  # chunks stay in the processor's cache
    best = []
    for part, wide, offset in zip(
        x.flatten(0, -2).split(rows),
        widest.flatten(0, -2).split(rows),
        (zero if isinstance(zero, Tensor) else torch.full_like(widest, zero)).flatten(0, -2).split(rows),
        strict=True,
    ):
        scale, error = wide.clone(), torch.full_like(wide, torch.inf)
        for factor in factors:
            tried = (wide * factor).clamp_min_(TINY)
            miss = round_to_grid(part, tried, offset, grid).sub_(offset).mul_(tried).sub_(part)
            miss = (miss.square_() if power == 2 else miss.abs_().pow_(power)).sum(-1, keepdim=True)
            scale, error = torch.where(miss < error, tried, scale), torch.minimum(miss, error)
        best.append(scale)
    return torch.cat(best).view_as(widest), zero


@final
class MSEOptimal(Range):
    """Scale and zero found by search on the tensor given at the start, then kept, or trained if `learned` (LSQ)."""

    scale: Tensor
    zero: Tensor

    def __init__(
        self,
        x: Tensor,
        grid: Grid,
        learned: bool = False,
        power: float = 2.0,
        factors: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        scale, zero = search(x.detach().float(), grid, power, factors)
        if learned:
            self.scale = nn.Parameter(scale)
        else:
            self.register_buffer("scale", scale)
        self.register_buffer(
            "zero", torch.as_tensor(zero, dtype=scale.dtype, device=scale.device).expand_as(scale).clone()
        )

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor | float]:
        return self.scale.clamp_min(TINY), grid.zero if grid.symmetric else self.zero


@final
class Quantizer(nn.Module):
    """Rounds onto `grid` within what `ranges` chooses. Vary it by its parts."""

    def __init__(self, grid: Grid, ranges: Range) -> None:
        super().__init__()
        self.grid, self.ranges = grid, ranges

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes (int8, or uint8 if asymmetric, in x's shape), float scale and zero [..., 1] of the grouped view."""
        view = groups(x.detach(), self.grid)
        scale, zero = self.ranges(view, self.grid)
        codes = round_to_grid(view, scale, zero, self.grid)
        zero = torch.as_tensor(zero, dtype=scale.dtype, device=scale.device).expand_as(scale)
        return codes.to(torch.int8 if self.grid.symmetric else torch.uint8).reshape(x.shape), scale.detach(), zero

    def forward(self, x: Tensor) -> Tensor:
        """x on the grid, same shape and dtype; while static ranges observe, x itself."""
        view = groups(x, self.grid)
        if isinstance(self.ranges, EMAMinMax) and self.ranges.observing:
            self.ranges.observe(view)
            return x
        scale, zero = self.ranges(view, self.grid)
        whole = isinstance(self.ranges, MinMax) and (  # nothing lies outside, but for the rounding of an integer zero
            not self.grid.symmetric or self.grid.amplitude <= self.grid.high - self.grid.zero
        )
        return Straight.apply(view, scale, zero, self.grid, not whole).reshape(x.shape)

    def rows(self, x: Tensor, index: Tensor) -> Tensor:
        """Rows x [..., d] of a table, rounded with the scales of their `index` [...]. Needs searched ranges."""
        assert isinstance(self.ranges, MSEOptimal) and self.grid.per not in ("tensor", "token")
        flat = index.flatten()
        view = x.reshape(len(flat), -1)
        view = view if self.grid.per == "channel" else groups(view, self.grid)
        zero = self.grid.zero if self.grid.symmetric else self.ranges.zero[flat]
        return Straight.apply(view, self.ranges.scale.clamp_min(TINY)[flat], zero, self.grid, True).reshape(x.shape)


def dequantize(codes: Tensor, scale: Tensor, zero: Tensor | float, grid: Grid) -> Tensor:
    """(code - zero) * scale, in the scale's dtype and the codes' shape."""
    return ((groups(codes, grid).to(scale.dtype) - zero) * scale).reshape(codes.shape)
