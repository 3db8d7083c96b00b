"""Mean and variance of what passes a layer, channel by channel; of BatchNorms, what they keep and what they see."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.autograd import Function

from zsaq.train.pair import Batch, Capture
from zsaq.vision.classifier import answered
from zsaq.vision.models import NORMS, batch_norms


@dataclass(frozen=True)
class Moments:
    """Mean and variance of each channel at one BatchNorm input, float [C]."""

    mean: Tensor
    variance: Tensor

    def to(self, like: Tensor) -> "Moments":
        return Moments(self.mean.to(like), self.variance.to(like))


def moments(x: Tensor) -> Moments:
    """Of x [B, C, H, W] over samples and positions, in float32; the variance is the biased one."""
    return Moments(*ChannelMoments.apply(x.float()))


@final
class ChannelMoments(Function):
    """Mean and biased variance [C] of x [B, C, H, W]: the kernel of BatchNorm's own training, and one pass back.

    `torch.var_mean` walks over a batch's channels number by number on CPUs, and three times on the way back.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, variance = torch.batch_norm_update_stats(x, None, None, 0.0)
        ctx.save_for_backward(x, mean)
        return mean, variance

    @staticmethod
    def backward(ctx: Any, of_mean: Tensor, of_variance: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        count = x.numel() // len(mean)
        slope = 2 * of_variance / count
        start = of_mean / count - slope * mean
        return torch.addcmul(start[:, None, None], x, slope[:, None, None])


def inputs_of_norms() -> Capture:
    return Capture("teacher", is_norm, "input")


def is_norm(name: str, module: nn.Module) -> bool:
    return isinstance(module, NORMS)


def stored(norm: nn.BatchNorm2d | nn.SyncBatchNorm) -> Moments:
    """The statistics that a BatchNorm keeps."""
    assert norm.running_mean is not None and norm.running_var is not None
    return Moments(norm.running_mean.detach().clone(), norm.running_var.detach().clone())


def unreached(teacher: nn.Module, pixels: Tensor) -> list[str]:
    """Names of the BatchNorms with statistics that images [B, C, H, W] do not reach, or not by calls of the module.
    Raises ValueError if they reach none."""
    capture, norms = inputs_of_norms(), set(batch_norms(teacher))
    seen = {norm for norm, _ in answered(teacher, pixels, (capture,)).seen[capture]}
    if not norms & seen:
        raise ValueError(out_of_reach(teacher))
    return [name for name, module in teacher.named_modules() if module in norms - seen]


def out_of_reach(teacher: nn.Module) -> str:
    """What is said where no image reaches a BatchNorm."""
    norms = set(batch_norms(teacher))
    names = [name for name, module in teacher.named_modules() if module in norms]
    return (
        f"{', '.join(names[:4])}{' and others' if len(names) > 4 else ''}: no image reaches these BatchNorms, whose "
        "statistics this method reads: call each as a module, self.norm(x) and not self.norm.forward(x), or take a "
        "method without statistics, as onepass-pink"
    )


@torch.no_grad()
def moments_of(teacher: nn.Module, batches: Iterable[Batch]) -> list[Moments]:
    """Statistics of synthetic `batches` at each BatchNorm2d, in module order, as targets of `BatchNormStats`.

    Mean of the batches' means; variance within plus between batches (law of total variance; equal batch sizes). A
    BatchNorm2d that no batch reaches has what it keeps. Raises ValueError if there is no batch, or none reaches any.
    """
    capture, norms = inputs_of_norms(), batch_norms(teacher)
    measured: dict[nn.Module, list[Moments]] = {norm: [] for norm in norms}
    empty = True
    for batch in batches:
        empty = False
        for norm, x in answered(teacher, batch["pixel_values"], (capture,)).seen[capture]:
            if norm in measured:
                measured[norm].append(moments(x))
    if not any(measured.values()):
        raise ValueError("there is no batch to measure: give at least one" if empty else out_of_reach(teacher))
    total = []
    for norm, each in zip(norms, measured.values(), strict=True):
        if not each:
            total.append(stored(norm))
            continue
        means = torch.stack([m.mean for m in each])
        within = torch.stack([m.variance for m in each]).mean(0)
        total.append(Moments(means.mean(0), within + means.var(0, unbiased=False)))
    return total


@torch.no_grad()
def missed(teacher: nn.Module, pixels: Tensor) -> float:
    """How far the statistics of images [B, C, H, W] are from those that the teacher keeps, in deviations.

    Root of the mean over BatchNorm2d of mean_c [(m - mu)^2 / (sigma^2 + eps)] + mean_c [log(s / sigma)^2], where s and
    sigma are deviations with eps in them. The scale of no channel counts.
    """
    capture, layers = inputs_of_norms(), []
    norms: dict[nn.Module, nn.BatchNorm2d | nn.SyncBatchNorm] = {norm: norm for norm in batch_norms(teacher)}
    for module, x in answered(teacher, pixels, (capture,)).seen[capture]:
        norm = norms.get(module)
        if norm is not None:
            seen = moments(x)
            kept = stored(norm).to(seen.mean)
            gap = (seen.mean - kept.mean).square() / (kept.variance + norm.eps)
            ratio = (seen.variance + norm.eps) / (kept.variance + norm.eps)
            layers.append((gap + (ratio.log() / 2).square()).mean())
    return float(torch.stack(layers).mean().sqrt())
