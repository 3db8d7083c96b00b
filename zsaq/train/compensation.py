"""Compensated rounding of one layer: column by column, the error of what was rounded moves into the columns that were
not yet, as far as the layer's inputs tell that it cancels there (GPTQ: Frantar et al. 2022, arXiv 2210.17323).

A convolution's columns are what its kernel looks at, its input unfolded; each of its groups has inputs of its own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zsaq.quant.codes import groups, nearby, round_to_grid, values_of
from zsaq.quant.config import Grid
from zsaq.quant.layers import QuantConv2d, QuantLayer
from zsaq.quant.quantizer import Quantizer

COLUMNS = 128  # that are rounded before those behind them hear of it
NEAR = 0.49  # of a step: where a latent weight is still rounded to its level
UNFOLDED = 2**24  # numbers of unfolded input at once: 64 MB


def moment(layer: QuantLayer, x: Tensor) -> Tensor:
    """The sum of x x^T over what a layer's rounded input `x` shows each of its output rows: [groups, d, d] float32.

    A convolution's is the unfolded input of each of its groups, [in / groups * height * width]; a Linear or Conv1D
    layer has one group.
    """
    if not isinstance(layer, QuantConv2d):
        flat = x.flatten(0, -2)
        return (flat.T @ flat)[None]
    x = padded(layer, x)
    d, places = layer.weight[0].numel(), max(1, math.prod(x.shape[2:]) // math.prod(layer.stride))
    total = x.new_zeros(layer.groups, d, d)
    for part in x.split(max(1, UNFOLDED // (layer.groups * d * places))):
        seen = F.unfold(part, layer.kernel_size, layer.dilation, 0, layer.stride)
        seen = seen.unflatten(1, (layer.groups, d)).permute(1, 2, 0, 3).flatten(2)
        total += seen @ seen.mT
    return total


def padded(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution's input [B, C, H, W] as its kernel meets it."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(x, layer._reversed_padding_repeated_twice, mode)  # torch's own, also of "same" and "valid"


def round_layers(layers: Sequence[QuantLayer], total: Tensor, damping: float) -> list[float]:
    """Round the weights of layers that share the inputs of that `moment` [groups, d, d] float64, which is overwritten,
    in place; the error of each: ||(w - q) x||^2 / ||w x||^2, 0 where the inputs are. Raises ValueError, with no weight
    changed, for a damping that leaves that moment without an inverse."""
    every = [layer.rows().flatten(1) for layer in layers]
    whole, silent = [_weight_of(rows.double(), total) for rows in every], not total.any()
    factor = _factor_of(total, damping)
    errors = []
    for layer, rows, norm in zip(layers, every, whole, strict=True):
        weigh(layer.weight_quantizer, rows, factor.cost)
        scale, zero, grid = _grid_of(layer)
        q, latent, miss = factor.columns(rows, scale, zero, grid)
        latent = nearby(latent, q, scale.repeat_interleave(rows.shape[1] // scale.shape[1], 1), grid, NEAR)
        layer.weight.copy_(latent.T if layer.columns_first else latent.view_as(layer.weight))
        errors.append(0.0 if silent else miss / (norm or 1.0))
    return errors


def check_damping(damping: float) -> None:
    """Raises ValueError for what is no positive number."""
    if not isinstance(damping, Real) or isinstance(damping, bool) or not 0 < damping < torch.inf:
        raise ValueError(f"damping is {damping!r}; give a positive number")


def _factor_of(total: Tensor, damping: float) -> "Factor | GroupedFactor":
    try:
        factor = Factor.of(total[0], damping) if len(total) == 1 else GroupedFactor.of(total, damping)
        fits = bool(factor.cost.isfinite().all())
    except torch.linalg.LinAlgError:
        fits = False
    if not fits:
        raise ValueError(f"damping is {damping!r}, with which what a layer reads has no inverse; give about 0.01")
    return factor


def _weight_of(rows: Tensor, total: Tensor) -> float:
    """The sum of ||w x||^2 over rows w [out, d]."""
    w = rows.unflatten(0, (len(total), -1)) if len(total) > 1 else rows
    return float((w @ (total if len(total) > 1 else total[0])).mul_(w).sum())


def weigh(quantizer: Quantizer, rows: Tensor, cost: Tensor) -> None:
    """Have ranges that were searched searched anew, for squared errors of columns that cost so much each, [d], or of
    groups of rows [groups, d]."""
    cost = cost.repeat_interleave(len(rows) // len(cost), 0) if cost.ndim == 2 else cost
    share, grid = (cost / cost.mean().clamp_min(torch.finfo(cost.dtype).tiny)).to(rows.dtype), quantizer.grid
    quantizer.ranges.weigh(groups(rows, grid), grid, groups(share.expand_as(rows), grid))


@final
@dataclass(frozen=True)
class Factor:
    """Of inputs x of a layer: `order` [d], columns with the largest inputs first; `upper` [d, d], with U^T U = H^-1 in
    that order, where H is the sum of x x^T with `added` on its diagonal."""

    order: Tensor
    upper: Tensor
    added: float

    @property
    def cost(self) -> Tensor:
        """1 / U_ii^2 of every column, [d] as they lie: what the square of its error adds to the layer's, after the
        columns behind it have taken what they can."""
        return self.upper.diagonal().square().reciprocal()[self.order.argsort()]

    @classmethod
    def of(cls, hessian: Tensor, damping: float, dtype: torch.dtype = torch.float32) -> "Factor":
        """Of the sum of x x^T, [d, d] float64, which is overwritten: d^2 numbers are what takes the memory. `damping`
        is the share of its mean square that is added to each; `dtype`: of `upper`. Where all inputs are zero, each
        column counts alike, and none can take what another left."""
        if not hessian.any():
            unit = torch.eye(len(hessian), dtype=dtype, device=hessian.device)
            return cls(torch.arange(len(hessian), device=hessian.device), unit, 0.0)
        order = hessian.diagonal().argsort(descending=True)
        h = hessian.copy_(hessian[order[:, None], order])
        added = damping * h.diagonal().mean().clamp_min(torch.finfo(h.dtype).tiny)
        h.diagonal().add_(added)
        torch.linalg.cholesky(h, out=h)
        torch.cholesky_inverse(h, out=h)
        return cls(order, torch.linalg.cholesky(h, upper=True, out=h).to(dtype), float(added))

    def columns(self, weight: Tensor, scale: Tensor, zero: Tensor, grid: Grid) -> tuple[Tensor, Tensor, float]:
        """See `gptq_columns`."""
        return gptq_columns(weight, self, scale, zero, grid)


def gptq_columns(
    weight: Tensor, factor: Factor, scale: Tensor, zero: Tensor, grid: Grid
) -> tuple[Tensor, Tensor, float]:
    """The weight on its grid, what each column was when its turn came, and the sum of ||(w - q) x||^2.

    `weight`: rows [out, d] float; `scale`, `zero` [out, groups] of columns that lie side by side. Column i leaves the
    error (w_i - q_i) / U_ii, which times U_ij is taken from every column j behind it (eq. 3, with the algorithm's lazy
    blocks).
    """
    order, u, group = factor.order, factor.upper, (factor.order // (weight.shape[1] // scale.shape[1])).tolist()
    w, miss = weight[:, order], 0.0
    rounded = torch.empty_like(w)
    scales, zeros = scale.T.contiguous(), zero.T.contiguous()
    for start in range(0, len(u), COLUMNS):
        stop = min(start + COLUMNS, len(u))
        now = w[:, start:stop].T.contiguous()  # columns as rows: what is read together lies together
        near, errors = torch.empty_like(now), torch.empty_like(now)
        for i in range(stop - start):
            at, step, offset = start + i, scales[group[start + i]], zeros[group[start + i]]
            near[i] = values_of(round_to_grid(now[i], step, offset, grid), offset, grid) * step
            errors[i] = (now[i] - near[i]) / u[at, at]
            now[i + 1 :] -= errors[i] * u[at, at + 1 : stop, None]
        w[:, start:stop], rounded[:, start:stop] = now.T, near.T
        w[:, stop:] -= errors.T.contiguous() @ u[start:stop, stop:]
        miss += float(errors.double().square().sum())
    back = order.argsort()
    rounded, latent = rounded[:, back], w[:, back]
    return rounded, latent, max(0.0, miss - factor.added * float((weight - rounded).double().square().sum()))


@final
@dataclass(frozen=True)
class GroupedFactor:
    """As `Factor`, of the inputs of each group of a convolution: `order` [groups, d], `upper` [groups, d, d], `added`
    [groups], `moment` [groups, d, d]. A group that is never shown anything is rounded to nearest."""

    order: Tensor
    upper: Tensor
    moment: Tensor

    @property
    def cost(self) -> Tensor:
        """Of every column of every group, [groups, d], with a mean of 1 in each."""
        cost = self.upper.diagonal(dim1=1, dim2=2).square().reciprocal().gather(1, self.order.argsort(1))
        return cost / cost.mean(1, keepdim=True)

    @classmethod
    def of(cls, hessian: Tensor, damping: float) -> "GroupedFactor":
        """Of the sums of x x^T, [groups, d, d] float64; `damping` as in `Factor.of`."""
        size = hessian.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        one = torch.eye(hessian.shape[1], dtype=hessian.dtype, device=hessian.device)
        h = torch.where(size > 0, hessian / size.clamp_min(torch.finfo(hessian.dtype).tiny), one)
        order = h.diagonal(dim1=1, dim2=2).argsort(1, descending=True)
        h = h.gather(1, order[:, :, None].expand_as(h)).gather(2, order[:, None, :].expand_as(h)) + damping * one
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
        return cls(order, torch.linalg.cholesky(inverse, upper=True).float(), hessian)

    def columns(self, weight: Tensor, scale: Tensor, zero: Tensor, grid: Grid) -> tuple[Tensor, Tensor, float]:
        """What `gptq_columns` gives for each group, for the rows [out, d] of all, in one go."""
        count, d = self.order.shape
        wide = [part.repeat_interleave(d // part.shape[1], 1) for part in (scale, zero)]
        order = self.order[:, None, :].expand(-1, len(weight) // count, -1)
        w, step, offset = (part.unflatten(0, (count, -1)).gather(2, order) for part in (weight, *wide))
        rounded = torch.empty_like(w)
        for i in range(d):
            codes = round_to_grid(w[..., i], step[..., i], offset[..., i], grid)
            rounded[..., i] = values_of(codes, offset[..., i], grid) * step[..., i]
            error = (w[..., i] - rounded[..., i]) / self.upper[:, i, i, None]
            w[..., i + 1 :] -= error[..., None] * self.upper[:, None, i, i + 1 :]
        back = order.argsort(2)
        rounded, latent = (part.gather(2, back).flatten(0, 1) for part in (rounded, w))
        miss = (weight - rounded).double().unflatten(0, (count, -1))
        return rounded, latent, float((miss @ self.moment).mul_(miss).sum())


def _grid_of(layer: QuantLayer) -> tuple[Tensor, Tensor, Grid]:
    """Scale and zero of the layer's rows, [out, groups], and their grid."""
    quantizer, rows = layer.weight_quantizer, layer.rows().flatten(1)
    view = groups(rows, quantizer.grid)
    scale, zero = quantizer.ranges(view, quantizer.grid)
    zero = torch.as_tensor(zero, dtype=scale.dtype, device=scale.device).expand_as(scale)
    several = scale.ndim == 3
    every = [part[..., 0] if several else part.expand(len(rows), 1) for part in (scale, zero)]
    return every[0], every[1], quantizer.grid
