"""GPTQ from the problem itself, without Cholesky factors: a least-squares problem for every column."""

import torch
from torch import Tensor

from zsaq.quant.config import Grid


def gptq_columns(weight: Tensor, hessian: Tensor, scale: Tensor, zero: Tensor, grid: Grid, damping: float) -> Tensor:
    """Round one column after the other; what is free takes the values that minimise the layer's squared error.

    Errors e of the rounded columns D are given, so the free ones F minimise (e_D, e_F) H (e_D, e_F)^T over e_F:
    e_F = -e_D H_DF H_FF^-1.
    """
    h = hessian + damping * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=hessian.dtype)
    order = hessian.diagonal().argsort(descending=True).tolist()
    error = torch.zeros_like(weight, dtype=torch.float64)  # of the weight as it is now
    for turn, i in enumerate(order):
        now = weight[:, i].double() + error[:, i]
        code = (now / scale[:, i] + zero[:, i]).round().clamp(grid.low, grid.high)
        error[:, i] = (code - zero[:, i]) * scale[:, i] - weight[:, i]
        done, free = order[: turn + 1], order[turn + 1 :]
        if free:
            error[:, free] = -error[:, done] @ h[done][:, free] @ torch.linalg.inv(h[free][:, free])
    return (weight + error).to(weight.dtype)
