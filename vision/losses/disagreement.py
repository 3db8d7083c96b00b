"""How much teacher and student should disagree on an image, as objectives on it: AdaSG's game (arXiv 2302.09572).

With P and S the logits of teacher and student: they should differ, but by no more than the student can learn from.
The gradient flows through both models.
"""

import math
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from zsaq.train.objectives import Objective, labels_of
from zsaq.train.pair import Pair


def disagreement_entropy(pair: Pair) -> Tensor:
    """Entropy of softmax(P - S) in nats, float [B]: log C where both models agree."""
    return torch.special.entr((pair.teacher.logits - pair.student.logits).softmax(-1)).sum(-1)


@final
class EntropyMargin(Objective):
    """mean max(lower - h, 0) + max(h - upper, 0), h the entropy of softmax(P - S) between the batch's least (0) and
    full agreement (1) (Qian et al. 2023, AdaSG, arXiv 2302.09572)."""

    def __init__(self, lower: float, upper: float) -> None:
        if not 0 <= lower <= upper <= 1:
            raise ValueError(f"lower is {lower}, upper {upper}; give 0 <= lower <= upper <= 1")
        self.lower, self.upper = lower, upper

    def __call__(self, pair: Pair) -> Tensor:
        entropy = disagreement_entropy(pair)
        least = entropy.min()
        share = (entropy - least) / (math.log(pair.teacher.logits.shape[-1]) - least).clamp_min(1e-8)
        return ((self.lower - share).relu() + (share - self.upper).relu()).mean()


@final
class DisagreementCE(Objective):
    """Cross-entropy of softmax(P - S) with the labels: the teacher should know the class and the student not."""

    def __call__(self, pair: Pair) -> Tensor:
        return F.cross_entropy(pair.teacher.logits - pair.student.logits, labels_of(pair))


@final
class AgreementCE(Objective):
    """Cross-entropy of softmax(P + S) with the labels: together they should know the class."""

    def __call__(self, pair: Pair) -> Tensor:
        return F.cross_entropy(pair.teacher.logits + pair.student.logits, labels_of(pair))
