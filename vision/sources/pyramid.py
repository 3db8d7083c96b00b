"""Images that are sums of resolutions, learned from coarse to fine at once, and made by what the teacher remembers.

Adam moves every number of a map alike: pixels learn what is fine as fast as what is coarse, and what is coarse needs
all of them to agree. A Laplacian pyramid (Burt & Adelson 1983) gives each octave of frequencies numbers of its own, so
that images match a teacher's statistics, and the ranges of its activations, in few steps and without a generator.

What a teacher remembers says nothing of how pixels hang together. Of photographs that is known: their amplitude falls
with frequency (Field 1987), their colours differ much less than their brightness (Ruderman et al. 1998). So finer maps
and colour differences begin smaller and move in smaller steps.
"""

from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR

from zsaq.train.pair import Batch
from zsaq.train.randomness import generator
from zsaq.train.synthesis import Source, Synthesizer, numbered, seed_of
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.losses.priors import TeacherCE
from zsaq.vision.models import classifier
from zsaq.vision.papers.genie import prior
from zsaq.vision.pictures import album
from zsaq.vision.sources.pink import opponents
from zsaq.vision.sources.swing import swing

COARSEST = 4  # pixels that the smallest map has at least: 4 levels at 32 pixels, 6 at 224
REACH = 2 / 32  # of the shifts, a share of the image's side
FALL = 0.5  # a map's weight is its side to the power of minus this


def falling(sides: list[int]) -> list[float]:
    """The weights of maps of these sides, with a mean square of 1."""
    weights = torch.tensor(sides, dtype=torch.float64) ** -FALL
    return (weights / weights.square().mean().sqrt()).tolist()


def balanced_labels(n: int, spec: ImageSpec, seed: int = 0) -> Tensor:
    """`n` labels in random order, int64 [n]: of any two classes one has at most one image more."""
    rng = torch.Generator().manual_seed(seed)
    rounds = [torch.randperm(spec.classes, generator=rng) for _ in range(-(-n // spec.classes))]
    return torch.cat(rounds)[:n]


@final
class Pyramid(Source):
    """An image for each of `labels` int64 [n]: the sum of maps [n, C, s, s], s = size, size / 2, ... (rounded down),
    weighted by s^-FALL.

    Each map is stretched bilinearly onto the next; the channels of their sum are mixed as `opponents` says.
    Maps begin at N(0, 1 / levels). Every forward gives all images. FALL is ours, taken with the real scores of a
    MobileNetV2 and an EfficientNet-Lite0 in sight, for which it is no clean zero-shot choice (recipes/LOG.md).
    """

    labels: Tensor
    colours: Tensor

    def __init__(self, spec: ImageSpec, labels: Tensor, seed: int = 0) -> None:
        super().__init__()
        sides = [spec.size]
        while sides[-1] // 2 >= COARSEST:
            sides.append(sides[-1] // 2)
        rng = torch.Generator().manual_seed(seed)
        shapes = [(len(labels), spec.channels, side, side) for side in reversed(sides)]
        self.maps = nn.ParameterList(torch.randn(shape, generator=rng) / len(sides) ** 0.5 for shape in shapes)
        self.weights = falling(sides[::-1])
        self.register_buffer("labels", labels)
        self.register_buffer("colours", opponents(spec.channels))

    def forward(self) -> Batch:
        (coarse, *finer), (first, *weights) = self.maps, self.weights
        total = first * coarse
        for each, weight in zip(finer, weights, strict=True):
            total = F.interpolate(total, size=each.shape[-2:], mode="bilinear") + weight * each
        return {"pixel_values": torch.einsum("kc,nchw->nkhw", self.colours, total), "labels": self.labels}


@final
class Moved(Source):
    """What `source` gives, rolled by up to `reach` pixels in each axis and mirrored half the time: one draw for all."""

    def __init__(self, source: Source, reach: int, seed: int = 0) -> None:
        super().__init__()
        self.source, self.reach, self.rng = source, reach, generator(seed)

    def forward(self) -> Batch:
        batch = self.source()
        down, right = torch.randint(-self.reach, self.reach + 1, (2,), generator=self.rng).tolist()
        pixels = batch["pixel_values"].roll((down, right), (2, 3))
        mirrored = torch.rand((), generator=self.rng) < 0.5
        return {**batch, "pixel_values": pixels.flip(3) if mirrored else pixels}


def pyramid_images(
    teacher: nn.Module, spec: ImageSpec, *, images: int = 64, group: int = 128, steps: int = 60, lr: float = 0.1,
    labels: float = 0.1, seed: int = 0, folder: Path | None = None,
) -> Batch:  # fmt: skip
    """`images` images of balanced classes: pixel_values float [images, C, S, S], labels int64 [images].

    In as few groups of at most `group` as there can be, equal in size, since statistics are those of a group.
    Minimises Genie's prior plus `labels` times the teacher's cross-entropy, on images that are moved and mirrored and
    through strides that swing, by Adam whose rate falls from `lr` to a fiftieth along a cosine. On the teacher's
    device; `folder` is where pictures go. Raises ValueError for counts below 1, a teacher without BatchNorm2d, and a
    loss that is not finite.
    """
    if min(images, group, steps) < 1:
        raise ValueError(f"images is {images}, group {group}, steps {steps}; give at least 1 of each")
    teacher = classifier(teacher)
    objective = prior(teacher) + labels * TeacherCE()
    finished: list[Batch] = []
    losses: list[float] = []
    parts = balanced_labels(images, spec, seed).tensor_split(-(-images // group))
    for turn, part in enumerate(parts):
        own = seed_of(seed, turn)
        pyramid = Pyramid(spec, part, own).to(next(teacher.parameters()).device)
        adam = torch.optim.Adam(pyramid.parameters(), lr)
        cosine = CosineAnnealingLR(adam, steps, lr / 50)
        moved = Moved(pyramid, round(REACH * spec.size), own)
        at = numbered("pyramid", turn, len(parts))
        synthesizer = Synthesizer(moved, objective, adam, teacher, scheduler=cosine, stage=at)
        with swing(teacher, own):
            synthesizer.finish(steps)
        finished.append({name: value.detach() for name, value in pyramid().items()})
        losses += synthesizer.losses
    batch = {name: torch.cat([part[name] for part in finished]) for name in finished[0]}
    if folder is not None:
        album(batch, folder, losses)
    return batch
