"""What the teacher knows of its training data, as objectives on images: statistics, classes, margins.

`BatchNormStats` asks images to look like the training data inside the teacher; the inception terms ask for a class;
the margins for variety (IntraQ) or a certain disagreement with the student (AdaSG).
"""

from collections.abc import Callable, Sequence
from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zsaq.train.objectives import Objective, labels_of
from zsaq.train.pair import Batch, Capture, Pair
from zsaq.train.randomness import generator
from zsaq.vision.classifier import answered
from zsaq.vision.losses.moments import Moments, inputs_of_norms, moments, out_of_reach, stored
from zsaq.vision.models import batch_norms

Form = Literal["batch", "instance"]
Spread = Literal["variance", "deviation"]


@final
class BatchNormStats(Objective):
    """Distance of the statistics at the input of every BatchNorm2d to the ones it has stored.

    - "batch" (Xu et al. 2020, GDFQ, arXiv 2003.03603): mean and biased variance over samples and positions;
      squared gaps, mean over channels, weighted mean over layers:
      (1 / L) sum_l weight_l (mean_c (m - mu)^2 + mean_c (v - sigma^2)^2).
    - "instance" (Cai et al. 2020, ZeroQ, arXiv 2001.00281): mean and unbiased deviation of each image over its
      positions; squared gaps, sum over channels, mean over images, weighted sum over layers. A layer whose map is one
      pixel has no deviation and tells only its mean.

    `spread`: what is compared beside the mean; by default the variance of a batch, the deviation of an instance.
    `weights`: one for each BatchNorm2d, in module order (`layered`). `targets`: other statistics than the stored ones,
    such as those of calibration centres (`moments_of`). `slack`: for each layer what the gap of the mean and of the
    spread may be for free, max(|gap| - slack, 0) (Zhang et al. 2021, DSG, arXiv 2103.01049). `enhance`: image i counts
    double at layer i modulo L, so that each image stresses a layer of its own (DSG); instances only.

    Raises ValueError if the teacher has no BatchNorm2d with statistics, if a list has another length, and, called, if
    images reach none of them; those that they do not reach are left out.
    """

    def __init__(
        self,
        teacher: nn.Module,
        form: Form = "batch",
        spread: Spread | None = None,
        *,
        weights: Sequence[float] | None = None,
        targets: Sequence[Moments] | None = None,
        slack: Sequence[tuple[float, float]] | None = None,
        enhance: bool = False,
    ) -> None:
        norms = batch_norms(teacher)
        for name, given in (("weights", weights), ("targets", targets), ("slack", slack)):
            if given is not None and len(given) != len(norms):
                raise ValueError(f"{name} has {len(given)} entries; give one for each of {len(norms)} BatchNorm2d")
        if form not in ("batch", "instance") or spread not in (None, "variance", "deviation"):
            raise ValueError(
                f"form is {form!r}, spread {spread!r}; give 'batch' or 'instance', 'variance', 'deviation'"
            )
        if enhance and form == "batch":
            raise ValueError("enhance weighs images one by one; give form='instance'")
        self.form, self.enhance = form, enhance
        self.spread = spread or ("variance" if form == "batch" else "deviation")
        self.place: dict[nn.Module, int] = {norm: i for i, norm in enumerate(norms)}
        self.weights = list(weights or [1.0] * len(norms))
        self.slack = list(slack or [(0.0, 0.0)] * len(norms))
        self.targets = list(targets or map(stored, norms))
        self.captures = (inputs_of_norms(),)

    def __call__(self, pair: Pair) -> Tensor:
        layers = []
        for norm, x in pair.teacher.seen[self.captures[0]]:
            i = self.place.get(norm)  # none for a norm that keeps no statistics
            if i is not None and self.weights[i]:
                layers.append(self.weights[i] * self.layer(x.float(), i))
        if not layers:
            raise ValueError(out_of_reach(pair.models[0]))
        total = torch.stack(layers).sum()
        return total / len(self.place) if self.form == "batch" else total

    def layer(self, x: Tensor, i: int) -> Tensor:
        """Of x [B, C, H, W] at layer i, a scalar."""
        mean, spread = (gap.square() for gap in self.gaps(x, i))
        if self.form == "batch":
            return mean.mean() + spread.mean()
        each = (mean + spread).sum(1)
        if self.enhance:
            each = each * (1 + (torch.arange(len(each), device=x.device) % len(self.place) == i))
        return each.mean()

    def gaps(self, x: Tensor, i: int) -> tuple[Tensor, Tensor]:
        """|mean - its target| and |spread - its target| beyond the slack: [C] of a batch, [B, C] of instances."""
        lone = self.form == "instance" and x[0, 0].numel() == 1
        if self.form == "batch":
            measured = moments(x)
            mean, variance = measured.mean, measured.variance
        else:
            variance, mean = torch.var_mean(x, (2, 3), unbiased=not lone)
        target = self.targets[i] = self.targets[i].to(mean)
        if lone:
            spread = torch.zeros_like(variance)
        elif self.spread == "variance":
            spread = variance - target.variance
        else:  # 1e-6 keeps the root's slope finite at a constant channel
            spread = (variance + 1e-6).sqrt() - (target.variance + 1e-6).sqrt()
        free = self.slack[i]
        return (mean - target.mean).abs().sub(free[0]).relu(), spread.abs().sub(free[1]).relu()


def evened(teacher: nn.Module) -> list[float]:
    """Weights of `BatchNormStats`: 1 / the mean over channels of the variance that each BatchNorm2d keeps, so that the
    scale of a layer's answers, which its BatchNorm takes away, is of no account."""
    return [1 / max(float(stored(norm).variance.float().mean()), 1e-6) for norm in batch_norms(teacher)]


def layered(teacher: nn.Module, shallow: float, deep: float) -> list[float]:
    """Weights of `BatchNormStats`: `shallow` below layer floor((L + 2) / 2) - 2, `deep` from there on (TexQ's idea)."""
    depth = len(batch_norms(teacher))
    return [shallow if i < (depth + 2) // 2 - 2 else deep for i in range(depth)]


@final
class TeacherCE(Objective):
    """The teacher's cross-entropy with the labels, int64 [B] or soft float [B, C], mean over samples.

    With `focus` > 0 each sample weighs (1 - p_y)^focus, gradient through the weight too: hard samples count (Li et al.
    2023, HAST, arXiv 2303.13826); labels must then be int64. Raises ValueError without labels.
    """

    def __init__(self, focus: float = 0.0) -> None:
        if not focus >= 0:
            raise ValueError(f"focus is {focus}; give a number that is not negative")
        self.focus = focus

    def __call__(self, pair: Pair) -> Tensor:
        labels, logits = labels_of(pair), pair.teacher.logits
        each = F.cross_entropy(logits, labels, reduction="none")
        if not self.focus:
            return each.mean()
        if labels.is_floating_point():
            raise ValueError("the focus on hard samples needs one label a sample, int64 [B]; these are soft")
        # Bounded away from 0, where a power below 1 has no finite slope.
        hard = (1 - (-each).exp()).clamp_min(1e-6)
        return (hard**self.focus * each).mean()


@final
class SoftInception(Objective):
    """Mean (p_y - t)^2: the teacher should be sure, but not always (IntraQ, arXiv 2111.09136).

    t is 1, and in half of the batches drawn from U(low, 1), once for the batch. Labels int64 [B].
    """

    def __init__(self, low: float, seed: int = 0) -> None:
        if not 0 <= low <= 1:
            raise ValueError(f"low is {low}; give a probability")
        self.low, self.rng = low, generator(seed)

    def __call__(self, pair: Pair) -> Tensor:
        soft, where = torch.rand(2, generator=self.rng).tolist()
        target = self.low + (1 - self.low) * where if soft < 0.5 else 1.0
        chance = pair.teacher.logits.softmax(-1).gather(1, labels_of(pair)[:, None])
        return (chance - target).square().mean()


@final
class MarginDistance(Objective):
    """Keeps an image's feature at a certain cosine distance from its class (IntraQ, arXiv 2111.09136).

    d = 1 - cos(f, centre of finished images of the class); mean of max(lower - d, 0) + max(d - upper, 0) over samples
    whose class has finished images: 0 until `remember` has been given a batch. `features` finds the module (such as
    the classifier) at whose input f [B, C] is read.
    """

    def __init__(self, features: type | Callable[[str, nn.Module], bool], lower: float, upper: float) -> None:
        if not 0 <= lower <= upper <= 2:
            raise ValueError(f"lower is {lower}, upper {upper}; give cosine distances, 0 <= lower <= upper <= 2")
        self.captures = (Capture("teacher", features, "input"),)
        self.lower, self.upper = lower, upper
        self.centres: dict[int, tuple[Tensor, int]] = {}  # class -> sum of its features [C], how many

    @torch.no_grad()
    def remember(self, teacher: nn.Module, batch: Batch) -> None:
        """Take finished images into their classes' centres."""
        out = answered(teacher, batch["pixel_values"], self.captures)
        seen = out.seen[self.captures[0]][0][1].flatten(1).float()
        for feature, label in zip(seen, batch["labels"].tolist(), strict=True):
            total, count = self.centres.get(label, (torch.zeros_like(feature), 0))
            self.centres[label] = (total + feature, count + 1)

    def __call__(self, pair: Pair) -> Tensor:
        features = pair.teacher.seen[self.captures[0]][0][1].flatten(1).float()
        labels = labels_of(pair).tolist()
        known = [i for i, label in enumerate(labels) if label in self.centres]
        if not known:
            return features.sum() * 0
        centres = torch.stack([self.centres[labels[i]][0] for i in known])
        distance = 1 - F.cosine_similarity(features[known], centres.to(features))
        return ((self.lower - distance).relu() + (distance - self.upper).relu()).mean()
