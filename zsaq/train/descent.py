"""Coordinate descent on a rounded weight: column after column takes the level that is best beside all the others.

QuantEase (Behdin et al. 2023, arXiv 2309.01885), here from compensated rounding on, which cannot go back to a column.
"""

import torch
from torch import Tensor

from zsaq.quant.codes import round_to_grid, values_of
from zsaq.quant.config import Grid

COLUMNS = 128  # whose slopes are kept up to date; those of the others are made when their turn comes


def descend(
    weight: Tensor, rounded: Tensor, moment: Tensor, scale: Tensor, zero: Tensor, grid: Grid, damping: float,
    sweeps: int,
) -> Tensor:  # fmt: skip
    """`rounded` after `sweeps` of all columns: no row's (w - q) H (w - q)^T is larger than before.

    `weight`, `rounded`, `scale` and `zero`: rows [out, d] float; `moment`: x x^T of the inputs of each group of rows,
    [groups, d, d] float64, of which H is `moment` and, on its diagonal, `damping` of its mean. A level is best where
    it is nearest to q_j + ((w - q) H)_j / H_jj.
    """
    size = moment.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    one = torch.eye(moment.shape[1], dtype=moment.dtype, device=moment.device)
    whole = torch.where(size > 0, moment / size.clamp_min(torch.finfo(moment.dtype).tiny), one) + damping * one
    h = whole.float()
    w, first, step, offset = (each.unflatten(0, (len(h), -1)) for each in (weight, rounded, scale, zero))
    q = first.clone()
    for _ in range(sweeps):
        for start in range(0, h.shape[1], COLUMNS):
            stop = min(start + COLUMNS, h.shape[1])
            slope = (w - q) @ h[:, :, start:stop]
            for i, j in enumerate(range(start, stop)):
                best = q[..., j] + slope[..., i] / h[:, j, j, None]
                codes = round_to_grid(best, step[..., j], offset[..., j], grid)
                level = values_of(codes, offset[..., j], grid) * step[..., j]
                slope[..., i + 1 :] -= (level - q[..., j])[..., None] * h[:, None, j, j + 1 : stop]
                q[..., j] = level
    before, after = ((e @ whole).mul_(e).sum(-1, keepdim=True) for e in ((w - each).double() for each in (first, q)))
    return torch.where(after < before, q, first).flatten(0, 1)
