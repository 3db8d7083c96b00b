"""Patch similarity: what attention in a vision transformer betrays about an image.

In a real image the patches of an object answer alike and those of its background do not, so their similarities spread;
in noise all patches answer alike. Li et al. 2022 (PSAQ-ViT, arXiv 2203.02250, sec. 3.2) make the spread an entropy.
"""

import math
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from zsaq.train.objectives import Objective
from zsaq.train.pair import Capture, Pair

FLOOR = 1e-4  # added to every density, so that its logarithm is finite


def patches_of(context: Tensor, heads: int) -> Tensor:
    """The patches' attention contexts, mean over heads: [B, T, heads * d] -> [B, N, d].

    The last N of the T tokens are patches, N the largest square in T (pictures and windows are square): ViT has one
    special token before them, distilled DeiT two, Swin none in a window.
    """
    patches = math.isqrt(context.shape[1]) ** 2
    return context[:, -patches:].unflatten(-1, (heads, -1)).mean(2)


def similarities(patches: Tensor) -> Tensor:
    """Cosine similarity of all patches of an image, the diagonal included: [B, N, d] -> [B, N, N]."""
    unit = F.normalize(patches.float(), dim=-1)
    return unit @ unit.mT


def _density(similarity: Tensor, node: Tensor, bandwidth: float) -> Tensor:
    """Gaussian kernel density of [B, N, N] at one node, [B]."""
    kernel = (similarity - node).div(bandwidth).square().mul(-0.5).exp()
    return kernel.mean((1, 2)) / (bandwidth * math.sqrt(2 * math.pi)) + FLOOR


def differential_entropy(similarity: Tensor, nodes: int, bandwidth: float) -> Tensor:
    """Entropy of the similarities [B, N, N] of each image, [B]: -p log p by trapezoids over the nodes.

    The nodes are evenly spaced between the extremes over the whole batch, constants to the gradient. One node's kernel
    [B, N, N] at a time is in memory: it is recomputed in the backward pass.
    """
    low, high = similarity.detach().aminmax()
    at = low + (high - low) * torch.linspace(0, 1, nodes, dtype=similarity.dtype, device=similarity.device)
    density = torch.stack(
        [
            checkpoint(_density, similarity, node, bandwidth, use_reentrant=False, preserve_rng_state=False)
            for node in at
        ]
    )
    return torch.trapezoid(-density * density.log(), at.unsqueeze(1), dim=0)


@final
class PatchSimilarityEntropy(Objective):
    """Minus the differential entropy of patch similarities, mean over images, sum over layers (PSAQ-ViT, eq. 5 to 8).

    `projections`: the output projections of the teacher's attentions, with their numbers of heads; their input is
    the attention context. `nodes` and `bandwidth` (in units of cosine) are the released values: where the
    similarities range over more than about 0.5, those between two nodes get no gradient. Raises ValueError for no
    projections, fewer than 2 nodes, or a bandwidth that is not positive.
    """

    def __init__(self, projections: dict[nn.Module, int], nodes: int = 10, bandwidth: float = 0.01) -> None:
        if not projections:
            raise ValueError("there is no attention to look at; patch similarity needs a vision transformer")
        if nodes < 2 or not bandwidth > 0:
            raise ValueError(f"nodes is {nodes}, bandwidth {bandwidth}; give at least 2, and a positive number")
        self.heads, self.nodes, self.bandwidth = dict(projections), nodes, bandwidth
        self.captures = (Capture("teacher", lambda _, module: module in self.heads, "input"),)

    def __call__(self, pair: Pair) -> Tensor:
        entropies = [
            differential_entropy(similarities(patches_of(context, self.heads[module])), self.nodes, self.bandwidth)
            for module, context in pair.teacher.seen[self.captures[0]]
        ]
        return -torch.stack([entropy.mean() for entropy in entropies]).sum()
