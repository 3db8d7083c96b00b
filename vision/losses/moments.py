"""Mean and variance of what passes a layer, channel by channel."""

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd import Function


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
