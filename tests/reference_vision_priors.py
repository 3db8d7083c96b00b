"""Priors of images, crops and norms as their formulas read, sample by sample and channel by channel."""

import math

import torch
from torch import Tensor


def batch_norm_stats(inputs: list[Tensor], stored: list[tuple[Tensor, Tensor]], deviation: bool = False) -> float:
    """(1 / L) sum_l (mean_c (m - mu)^2 + mean_c (v - var)^2) of inputs [B, C, H, W] of each layer."""
    total = 0.0
    for x, (mu, var) in zip(inputs, stored, strict=True):
        layer = 0.0
        for c in range(x.shape[1]):
            values = x[:, c].flatten().tolist()
            m = sum(values) / len(values)
            v = sum((value - m) ** 2 for value in values) / len(values)
            gap = math.sqrt(v + 1e-6) - math.sqrt(float(var[c]) + 1e-6) if deviation else v - float(var[c])
            layer += (m - float(mu[c])) ** 2 + gap**2
        total += layer / x.shape[1]
    return total / len(inputs)


def instance_norm_stats(
    inputs: list[Tensor],
    stored: list[tuple[Tensor, Tensor]],
    slack: tuple[float, float] = (0, 0),
    enhance: bool = False,
) -> float:
    """sum_l mean_i sum_c (max(|m - mu| - d, 0)^2 + max(|s - sd| - g, 0)^2); doubled where i mod L is l."""
    total = 0.0
    for layer, (x, (mu, var)) in enumerate(zip(inputs, stored, strict=True)):
        for i in range(len(x)):
            for c in range(x.shape[1]):
                values = x[i, c].flatten().tolist()
                m = sum(values) / len(values)
                s = math.sqrt(sum((value - m) ** 2 for value in values) / (len(values) - 1) + 1e-6)
                mean = max(abs(m - float(mu[c])) - slack[0], 0)
                spread = max(abs(s - math.sqrt(float(var[c]) + 1e-6)) - slack[1], 0)
                weight = 2 if enhance and i % len(inputs) == layer else 1
                total += weight * (mean**2 + spread**2) / len(x)
    return total


def softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    powers = [math.exp(z - top) for z in logits]
    return [power / sum(powers) for power in powers]


def focal_ce(logits: Tensor, labels: Tensor, focus: float) -> float:
    """mean (1 - p_y)^focus * -log p_y."""
    chances = [softmax(row)[y] for row, y in zip(logits.tolist(), labels.tolist(), strict=True)]
    return sum((1 - p) ** focus * -math.log(p) for p in chances) / len(chances)


def soft_ce(logits: Tensor, labels: Tensor) -> float:
    rows = zip(logits.tolist(), labels.tolist(), strict=True)
    return -sum(q * math.log(p) for z, y in rows for p, q in zip(softmax(z), y, strict=True)) / len(logits)


def entropy_margin(teacher: Tensor, student: Tensor, lower: float, upper: float) -> float:
    """Entropies of softmax(P - S), from the least (0) to log C (1), and how far they are outside of the margins."""
    entropies = []
    for row in (teacher - student).tolist():
        entropies.append(-sum(p * math.log(p) for p in softmax(row)))
    least, most = min(entropies), math.log(teacher.shape[1])
    shares = [(h - least) / (most - least) for h in entropies]
    return sum(max(lower - h, 0) + max(h - upper, 0) for h in shares) / len(shares)


def crop(image: Tensor, box: list[int], flipped: bool) -> Tensor:
    """Box (top, left, height, width) of an image [C, H, W] cut out, resized bilinearly, mirrored; pixel by pixel."""
    top, left, height, width = box
    part = image[:, top : top + height, left : left + width]
    out = torch.empty_like(image)
    for i in range(image.shape[1]):
        for j in range(image.shape[2]):
            y = min(max((i + 0.5) * height / image.shape[1] - 0.5, 0), height - 1)
            x = min(max((j + 0.5) * width / image.shape[2] - 0.5, 0), width - 1)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
            above = part[:, y0, x0] * (1 - x + x0) + part[:, y0, x1] * (x - x0)
            below = part[:, y1, x0] * (1 - x + x0) + part[:, y1, x1] * (x - x0)
            out[:, i, j] = above * (1 - y + y0) + below * (y - y0)
    return out.flip(2) if flipped else out


def conditional_norm(x: Tensor, labels: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """Batch statistics of x [B, C, H, W]; scale and shift [classes, C] by labels [B] or [B, classes]."""
    out = torch.empty_like(x)
    for c in range(x.shape[1]):
        values = x[:, c]
        normal = (values - values.mean()) / (values.var(unbiased=False) + eps).sqrt()
        for i, label in enumerate(labels):
            if label.ndim:
                by = sum(float(w) * scale[k, c] for k, w in enumerate(label))
                plus = sum(float(w) * shift[k, c] for k, w in enumerate(label))
            else:
                by, plus = scale[int(label), c], shift[int(label), c]
            out[i, c] = normal[i] * by + plus
    return out
