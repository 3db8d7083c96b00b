"""Plain twins of learned rounding and of gradient matching."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def soft_weight(
    weight: list[float], scale: float, zero: int, bits: list[float], high: int, base_scale: float
) -> list[float]:
    """Genie-M's weight of one row on an asymmetric grid, number by number; `base_scale` froze the integers."""
    weights = []
    for w, v in zip(weight, bits, strict=True):
        soft = min(max(1.2 / (1 + math.exp(-v)) - 0.1, 0.0), 1.0)
        code = min(max(math.floor(w / base_scale + zero) + soft, 0), high)
        weights.append(scale * (code - zero))
    return weights


def search_power(row: list[float], high: int, power: float) -> tuple[float, int]:
    """Scale and zero of one row on an asymmetric grid: of 100 shrunken min-max ranges the one of least error."""
    lo, hi = min(*row, 0.0), max(*row, 0.0)
    zero = round(-lo / ((hi - lo) / high))
    best = (math.inf, 0.0)
    for share in range(100, 0, -1):
        scale = share / 100 * (hi - lo) / high
        rounded = [scale * (min(max(round(w / scale + zero), 0), high) - zero) for w in row]
        best = min(best, (sum(abs(w - q) ** power for w, q in zip(row, rounded, strict=True)), scale))
    return best[1], zero


def gradient(layer: nn.Module, weight: Tensor, seen: Tensor, target: Tensor) -> Tensor:
    """d/dW of 1/2 ||target - layer(seen)||^2 for one sample, by autograd, flat."""
    leaf = weight.detach().clone().requires_grad_()
    if isinstance(layer, nn.Conv2d):
        answer = layer._conv_forward(seen, leaf, layer.bias)
    else:
        assert isinstance(layer, nn.Linear)
        answer = F.linear(seen, leaf, layer.bias)
    return torch.autograd.grad(0.5 * (target - answer).square().sum(), leaf)[0].flatten()


def cosines(gradients: list[Tensor], others: list[Tensor]) -> Tensor:
    return torch.stack([torch.stack([F.cosine_similarity(g, o, dim=0) for o in others]) for g in gradients])


def gram(e: Tensor, h: Tensor, e2: Tensor, h2: Tensor) -> Tensor:
    """<G, G2> of G = sum_p e_p h_p' over positions, from Gram matrices: sum_pq <e_p, e2_q> <h_p, h2_q>."""
    return ((e @ e2.T) * (h @ h2.T)).sum()
