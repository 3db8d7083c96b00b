"""Which labels a student is held to: all of them (`zsaq.CE`), those of easy samples, or the teacher's own.

`zsaq.CE` takes the batch's labels as they are, hard or soft.
"""

import math
from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zsaq.train.objectives import Objective, labels_of
from zsaq.train.pair import Batch, Pair
from zsaq.vision.classifier import answered

CHUNK = 256  # images at a time where nothing is trained


def labelled(teacher: nn.Module, images: Batch) -> Batch:
    """`images`, and if they have no labels, the teacher's answers as such: int64 [n]."""
    if "labels" in images:
        return images
    answers = [answered(teacher, x).logits.argmax(-1) for x in images["pixel_values"].split(CHUNK)]
    return {**images, "labels": torch.cat(answers).to(images["pixel_values"].device)}


@final
class EasyCE(Objective):
    """Cross-entropy of the student with the labels of easy samples: mean over the batch of 1[d <= threshold] * CE.

    The difficulty d = 1 - p(label) is the teacher's (Kim et al. 2025, SynQ, eq. 3 and 6); difficult samples count as 0.
    Labels: int64 [B], or float [B, C], whose difficulty is that of their largest entry. Raises ValueError for a
    threshold outside [0, 1], and if the batch has no labels.
    """

    def __init__(self, threshold: float) -> None:
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold is {threshold!r}; give a difficulty from 0 to 1")
        self.threshold = threshold

    def __call__(self, pair: Pair) -> Tensor:
        labels = labels_of(pair)
        hard = labels if labels.ndim == 1 else labels.argmax(-1)
        with torch.no_grad():
            easy = 1 - pair.teacher.logits.softmax(-1).gather(-1, hard[:, None]).squeeze(-1) <= self.threshold
        return (F.cross_entropy(pair.student.logits, labels, reduction="none") * easy).mean()


@final
class PseudoCE(Objective):
    """Cross-entropy with the teacher's own labels, by how sure it is (Fan et al. 2024, PLF).

    Where its entropy, divided by log C, is at most `threshold`, its first class counts; elsewhere its first two, in
    proportion to their probabilities, times `weight`. Each kind is averaged over its own samples. `scheduled` moves the
    threshold. Raises ValueError for a threshold outside [0, 1] or a weight that is negative.
    """

    def __init__(self, threshold: float, weight: float) -> None:
        if not (0 <= threshold <= 1 and 0 <= weight < math.inf):
            raise ValueError(f"threshold is {threshold!r} and weight {weight!r}; give a share, and at least 0")
        self.threshold, self.weight = threshold, weight

    def __call__(self, pair: Pair) -> Tensor:
        with torch.no_grad():
            log = pair.teacher.logits.log_softmax(-1)
            p, classes = log.exp().topk(2)
            sure = -(log.exp() * log).sum(-1) / math.log(log.shape[-1]) <= self.threshold
            shares = torch.where(sure[:, None], torch.tensor([1.0, 0.0], device=p.device), p / p.sum(-1, keepdim=True))
        each = -(shares * pair.student.logits.log_softmax(-1).gather(-1, classes)).sum(-1)
        first, second = (torch.where(kind, each, 0).sum() / kind.sum().clamp_min(1) for kind in (sure, ~sure))
        return first + self.weight * second


def scheduled(batches: Iterator[Batch], labels: PseudoCE, lowest: float, count: int) -> Iterator[Batch]:
    """`batches` as they come; with each, the threshold of `labels` goes down: linearly, to `lowest` after `count`."""
    highest = labels.threshold
    for i, batch in enumerate(batches):
        labels.threshold = highest - min(i / count, 1.0) * (highest - lowest)
        yield batch
