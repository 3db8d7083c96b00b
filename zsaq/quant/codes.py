"""Numbers to codes and back: which entries share a scale, the nearest value, and what a code stands for."""

import torch
from torch import Tensor

from zsaq.quant.grid import Grid


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


def codebook(like: Tensor, grid: Grid) -> Tensor:
    """The grid's values in the dtype and on the device of `like`."""
    return torch.tensor(grid.values, dtype=like.dtype, device=like.device)


def round_to_grid(x: Tensor, scale: Tensor, zero: Tensor | float, grid: Grid) -> Tensor:
    """The codes of the nearest values, as floats in x's shape: clamp(round(x / scale + zero), low, high)."""
    place = torch.div(x, scale)
    if grid.uniform:
        return moved(place, zero).round_().clamp_(grid.low, grid.high)
    edges = torch.tensor(grid.edges, dtype=place.dtype, device=place.device)
    return torch.bucketize(place.contiguous(), edges).to(place.dtype)


def moved(x: Tensor, zero: Tensor | float) -> Tensor:
    """`x` plus `zero`, in its place; a symmetric grid's 0 is not added."""
    return x if isinstance(zero, float) and zero == 0 else x.add_(zero)


def values_of(codes: Tensor, zero: Tensor | float, grid: Grid) -> Tensor:
    """What float codes stand for, in units of the scale and in their shape: code - zero, or the codebook's entry."""
    return codes - zero if grid.uniform else codebook(codes, grid)[codes.long()]


def nearest(x: Tensor, scale: Tensor, zero: Tensor | float, grid: Grid) -> Tensor:
    """The nearest values times the scale, in x's shape and the wider dtype of both: `values_of(round_to_grid(x))` in
    one buffer."""
    codes = round_to_grid(x, scale, zero, grid)
    return moved(codes, -zero).mul_(scale) if grid.uniform else values_of(codes, zero, grid).mul_(scale)


def dequantize(codes: Tensor, scale: Tensor, zero: Tensor | float, grid: Grid) -> Tensor:
    """Values times the scale, in the scale's dtype and the codes' shape."""
    return (values_of(groups(codes, grid).to(scale.dtype), zero, grid) * scale).reshape(codes.shape)


def nearby(x: Tensor, values: Tensor, scale: Tensor, grid: Grid, share: float) -> Tensor:
    """`x`, at most that share of a step from `values`, which lie on the grid, so that it is rounded to them."""
    if grid.uniform:
        return torch.clamp(x, values - share * scale.abs(), values + share * scale.abs())
    codes, gaps = round_to_grid(values, scale, 0.0, grid).long(), codebook(values, grid).diff()
    below, above = torch.cat([gaps[:1], gaps])[codes], torch.cat([gaps, gaps[-1:]])[codes]
    return torch.clamp(x, values - share * below * scale, values + share * above * scale)


def within(x: Tensor, zero: Tensor | float, grid: Grid) -> Tensor:
    """Where x, in units of the scale, is rounded and not clamped: bool, in x's shape."""
    if not grid.uniform:
        return (x >= grid.values[0]) & (x <= grid.values[-1])
    code = (x + zero).round()
    return (code >= grid.low) & (code <= grid.high)


def wide(x: Tensor) -> Tensor:
    """`x` in float32 at least: what 16 bits hold of a scale is too coarse, and below 6e-5 float16 holds hardly any."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
