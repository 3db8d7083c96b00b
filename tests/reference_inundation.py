"""Gradient inundation in plain loops: one layer after the other, one trial after the other, numbers on the host."""

from collections.abc import Callable

import torch
from torch import Tensor

from zsaq.quant.config import Grid


def codes(rows: Tensor, grid: Grid) -> Tensor:
    """Min-max codes of rows [out, n], row by row, or for the whole tensor at once; symmetric or not, from formulas."""
    if grid.per == "tensor":
        rows = rows.reshape(1, -1)
    out = []
    for row in rows:
        if grid.symmetric:
            scale, zero = (row.abs().max() / grid.amplitude).clamp(min=1e-8), grid.zero
        else:
            low, high = row.min().clamp(max=0), row.max().clamp(min=0)
            scale = ((high - low) / grid.amplitude).clamp(min=1e-8)
            zero = (-low / scale).round().clamp(grid.low, grid.high)
        out.append((row / scale + zero).round().clamp(grid.low, grid.high))
    return torch.stack(out)


def search(changed: Callable[[float], int], numel: int, share: float, cap: float = 128, bisections: int = 5) -> float:
    """Double from 1 until `changed(kappa)` reaches a share of all, then halve the last doubling; the end that does."""

    def enough(kappa: float) -> bool:
        return changed(kappa) >= share * numel * (1 - 1e-6)

    high = 1.0
    while not enough(high) and high < cap:
        high *= 2
    if high == 1:
        return high
    low = high / 2
    for _ in range(bisections):
        middle = (low + high) / 2
        if enough(middle):
            high = middle
        else:
            low = middle
    return high


def inundated(before: Tensor, after: Tensor, grid: Grid, share: float, cap: float = 128) -> tuple[Tensor, float]:
    """A weight [out, ...] moved from `before` to `after` by the base: where it ends, and kappa."""
    rows, ended = before.flatten(1), after.flatten(1)
    start = codes(rows, grid)

    def at(kappa: float) -> Tensor:
        return (kappa - 1) * (ended - rows) + ended

    def changed(kappa: float) -> int:
        return int((codes(at(kappa), grid) != start).sum())

    kappa = search(changed, before.numel(), share, cap)
    return at(kappa).view_as(before), kappa


def nesterov(w: Tensor, grads: list[Tensor], lr: float, momentum: float) -> list[Tensor]:
    """SGD's steps from the formulas; the buffer holds plain gradients."""
    buffer, steps = torch.zeros_like(w), []
    for g in grads:
        buffer = momentum * buffer + g
        steps.append(-lr * (g + momentum * buffer))
    return steps


def adam(w: Tensor, grads: list[Tensor], lr: float, b1: float, b2: float) -> list[Tensor]:
    m, v, steps = torch.zeros_like(w), torch.zeros_like(w), []
    for t, g in enumerate(grads, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        steps.append(-lr * (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + 1e-8))
    return steps
