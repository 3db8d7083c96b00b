"""Plain twins of what vision's features, spectrum and label policies compute: loops over samples from the formulas."""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


def low_pass(image: np.ndarray, d0: float) -> np.ndarray:
    """SynQ's eq. 4 as written, one channel [N, N]: shifted spectrum, distance from its centre in bins."""
    n = image.shape[0]
    row, column = np.meshgrid(np.arange(n), np.arange(n), indexing="ij")
    gain = np.exp(-((row - n // 2) ** 2 + (column - n // 2) ** 2) / (2 * d0**2))
    return np.fft.ifft2(np.fft.ifftshift(np.fft.fftshift(np.fft.fft2(image)) * gain)).real


def channel_attention(p: Tensor, q: Tensor) -> float:
    """HAST's feature alignment of one pair of maps [B, C, H, W]."""
    total = 0.0
    for one, other in zip(p, q, strict=True):
        a, b = ([float((channel**2).mean()) for channel in x] for x in (one, other))
        a, b = ([v / math.sqrt(sum(w * w for w in x)) for v in x] for x in (a, b))
        total += sum((u - v) ** 2 for u, v in zip(a, b, strict=True)) / len(a)
    return total / len(p)


def grad_cam(model: nn.Module, layer: nn.Module, pixels: Tensor, labels: Tensor) -> list[Tensor]:
    """Grad-CAM of each image by a pass of its own: maps [positions], with a graph to the layer's parameters."""
    maps = []
    for image, label in zip(pixels, labels, strict=True):
        kept = []
        handle = layer.register_forward_hook(lambda module, args, output, kept=kept: kept.append(output))
        answer = model(image[None].clone().requires_grad_())
        handle.remove()
        logits = answer if isinstance(answer, Tensor) else answer.logits
        (slope,) = torch.autograd.grad(logits[0, label], kept[0], retain_graph=True)
        x, slope = kept[0][0], slope[0]
        if x.ndim == 2:  # tokens: those of patches stand last and fill a square
            side = math.isqrt(len(x))
            x, slope = x[-side * side :].T, slope[-side * side :].T
        x, slope = x.flatten(1), slope.flatten(1)
        total = torch.zeros(x.shape[1])
        for k in range(len(x)):
            total = total + slope[k].mean() * x[k]
        maps.append(total.clamp_min(0))
    return maps


def easy_ce(teacher: Tensor, student: Tensor, labels: Tensor, threshold: float) -> float:
    total = 0.0
    for p, q, label in zip(teacher.softmax(-1), student.log_softmax(-1), labels.tolist(), strict=True):
        total += -float(q[label]) if 1 - float(p[label]) <= threshold else 0.0
    return total / len(teacher)


def pseudo_ce(teacher: Tensor, student: Tensor, threshold: float, weight: float) -> float:
    """PLF's labels: first class where the entropy is low, else the first two by their probabilities."""
    sure, unsure = [], []
    for p, q in zip(teacher.softmax(-1), F.log_softmax(student, -1), strict=True):
        order = p.argsort(descending=True)
        if -float((p * p.log()).sum()) / math.log(len(p)) <= threshold:
            sure.append(-float(q[order[0]]))
        else:
            first, second = float(p[order[0]]), float(p[order[1]])
            both = first * float(q[order[0]]) + second * float(q[order[1]])
            unsure.append(-both / (first + second))
    mean = [sum(values) / len(values) if values else 0.0 for values in (sure, unsure)]
    return mean[0] + weight * mean[1]
