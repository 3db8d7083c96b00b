"""Plain twins of what the package does cleverly: scalar loops and one-liners from the formulas."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def nearest(value: float, levels: list[float]) -> float:
    return min(levels, key=lambda level: abs(level - value))


def levels(bits: int, kind: str) -> list[float]:
    """The multiples of the scale that a symmetric grid holds."""
    if kind == "half":
        return [-1.5, -0.5, 0.5, 1.5]
    return [-1.0, 0.0, 1.0] if kind == "ternary" else [float(i) for i in range(-(2 ** (bits - 1)), 2 ** (bits - 1))]


def search_row(row: list[float], values: list[float], factors: list[float], amplitude: float) -> float:
    """The scale of one row with the least squared error among shrunk abs-max scales; the first among equals."""
    best, least = 0.0, math.inf
    for factor in factors:
        scale = max(abs(v) for v in row) / amplitude * factor
        error = sum((nearest(v / scale, values) * scale - v) ** 2 for v in row)
        if error < least:
            best, least = scale, error
    return best


def straight(x: Tensor, scale: Tensor, zero: float, low: int, high: int, amplitude: float) -> Tensor:
    """Fake quantization by detach, whose autograd is the straight-through estimator and LSQ's scale gradient."""
    share = 1 / math.sqrt(x.shape[-1] * amplitude)
    scale = scale * share + (scale - scale * share).detach()
    v = x / scale + zero
    rounded = v + (v.round() - v).detach()
    return (rounded.clamp(low, high) - zero) * scale


def running(values: list[Tensor], momentum: float) -> tuple[float, float]:
    """Bias-corrected exponential means of minima and maxima: weighted means with weights momentum^age."""
    weights = [momentum ** (len(values) - 1 - i) for i in range(len(values))]
    lo = sum(w * float(v.min()) for w, v in zip(weights, values, strict=True)) / sum(weights)
    hi = sum(w * float(v.max()) for w, v in zip(weights, values, strict=True)) / sum(weights)
    return lo, hi


def kl(p_logits: Tensor, q_logits: Tensor, temperature: float, keep: Tensor) -> float:
    p, q = (torch.softmax(z.double() / temperature, -1) for z in (p_logits, q_logits))
    each = (p * (p.log() - q.log())).sum(-1)
    rows = [row[kept].mean() for row, kept in zip(each, keep, strict=True)]
    return temperature**2 * torch.stack(rows).mean().item()


def logit_l1(p: Tensor, q: Tensor) -> float:
    return (p - q).abs().mean().item()


def logit_mse(p: Tensor, q: Tensor) -> float:
    return F.mse_loss(p, q).item()


def relative_error(p: list[Tensor], q: list[Tensor], keep: Tensor) -> float:
    """Sum over layers of the mean over rows of ||p - q||^2 / ||p||^2 over a row's kept entries."""
    total = 0.0
    for a, b in zip(p, q, strict=True):
        rows = [((x[k] - y[k]).square().sum() / x[k].square().sum()).item() for x, y, k in zip(a, b, keep, strict=True)]
        total += sum(rows) / len(rows)
    return total
