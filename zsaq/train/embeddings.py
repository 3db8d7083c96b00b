"""What a student of an embedding model should match: each text's vector, and which texts are alike."""

from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from zsaq.pooling import Pooling
from zsaq.train.objectives import Objective, relative_error
from zsaq.train.pair import Pair


def pooled(pair: Pair, pooling: Pooling) -> tuple[Tensor, Tensor]:
    """The vectors [B, d] of teacher and student."""
    mask = pair.batch.get("attention_mask")
    return pooling(pair.teacher.answer, mask), pooling(pair.student.answer, mask)


def cosines(vectors: Tensor) -> Tensor:
    """How alike the rows of [B, d] are: [B, B]."""
    unit = F.normalize(vectors, dim=-1)
    return unit @ unit.T


@final
class Embeddings(Objective):
    """Mean over rows of ||p - q||^2 / ||p||^2 of the pooled vectors: at unit length it is 2 (1 - cosine)."""

    def __init__(self, pooling: Pooling) -> None:
        self.pooling = pooling

    def __call__(self, pair: Pair) -> Tensor:
        p, q = pooled(pair, self.pooling)
        return relative_error(p, q, torch.ones((), dtype=torch.bool, device=p.device))


@final
class Similarities(Objective):
    """The error of the cosines among the texts of a batch, as a share of the teacher's own spread: mean over rows of
    sum_j (P_ij - Q_ij)^2 / sum_j (P_ij - mean_j P_ij)^2, j other than i.

    A share, since the texts of some models are all alike within a few hundredths, and of others are not. It compares
    the rows of one batch: micro-batches and processes take the mean of theirs.
    """

    def __init__(self, pooling: Pooling) -> None:
        self.pooling = pooling

    def __call__(self, pair: Pair) -> Tensor:
        p, q = (others(cosines(vectors)) for vectors in pooled(pair, self.pooling))
        spread = (p - p.mean(1, keepdim=True)).square().sum(1)
        return ((p - q).square().sum(1) / spread.detach().clamp_min(1e-4)).mean() if p.numel() else q.sum()


def others(square: Tensor) -> Tensor:
    """[B, B] without its diagonal: [B, B - 1]."""
    n = len(square)
    return square[~torch.eye(n, dtype=torch.bool, device=square.device)].view(n, n - 1)
