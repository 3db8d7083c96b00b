"""DSG (Zhang et al. 2021, arXiv 2103.01049): statistics with slack, and a layer of its own for every image.

ZeroQ's images all match the same statistics and so look alike. Here a gap is free up to what noise has, and every image
stresses another layer.
"""

from pathlib import Path

import torch
from torch import nn

from zsaq.train.pair import Batch
from zsaq.train.synthesis import synthesize
from zsaq.vision.classifier import answered, classifier
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.losses.priors import BatchNormStats, TeacherCE
from zsaq.vision.losses.smoothness import ImageNorm, TotalVariation
from zsaq.vision.pictures import album
from zsaq.vision.sources.pixels import Pixels, uniform_labels


@torch.no_grad()
def slack(
    teacher: nn.Module, spec: ImageSpec, quantile: float = 0.9, images: int = 64, seed: int = 0
) -> list[tuple[float, float]]:
    """For each BatchNorm2d the `quantile` of the gaps of mean and deviation, over channels and `images` of noise.

    Raises ValueError for a quantile outside 0 to 1.
    """
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile is {quantile}; give a number from 0 to 1")
    teacher = classifier(teacher)
    noise = torch.randn(images, spec.channels, spec.size, spec.size, generator=torch.Generator().manual_seed(seed))
    prior = BatchNormStats(teacher, "instance")
    gaps = [(0.0, 0.0)] * len(prior.place)
    for norm, x in answered(teacher, noise, prior.captures).seen[prior.captures[0]]:
        if norm in prior.place:
            i = prior.place[norm]
            # Sorted by hand: torch.quantile refuses more than 2^24 numbers.
            mean, spread = (gap.flatten().sort().values for gap in prior.gaps(x.float(), i))
            at = round(quantile * (len(mean) - 1))
            gaps[i] = (float(mean[at]), float(spread[at]))
    return gaps


def dsg_images(
    teacher: nn.Module, spec: ImageSpec, *, images: int = 64, steps: int = 500, lr: float = 0.9, quantile: float = 0.9,
    seed: int = 0, folder: Path | None = None,
) -> Batch:  # fmt: skip
    """`images` images with uniform labels; pictures of them in `folder`.

    Statistics with slack and layer-wise enhancement, the teacher's CE, and, weighted 0.01 each, total variation and
    norm, as the released code has them. The paper's log version adds a term against correlated images, which has no
    gradient there and is left out. Adam's rate is divided by 10 whenever the loss has not fallen for 260 steps, as
    published for 500 and for fewer too, for the reason that `optimised_images` gives. Raises
    ValueError for a teacher without BatchNorm2d.
    """
    teacher = classifier(teacher)
    source = Pixels(images, spec, uniform_labels(images, spec, seed), seed=seed)
    adam = torch.optim.Adam(source.parameters(), lr)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(adam, factor=0.1, patience=260, min_lr=1e-4)
    free = slack(teacher, spec, quantile, images, seed)
    statistics = BatchNormStats(teacher, "instance", slack=free, enhance=True)
    objective = statistics + TeacherCE() + 0.01 * TotalVariation() + 0.01 * ImageNorm()
    losses: list[float] = []
    batch = synthesize(source, objective, adam, steps, teacher, scheduler=plateau, losses=losses, stage="dsg")
    if folder is not None:
        album(batch, folder, losses)
    return batch
