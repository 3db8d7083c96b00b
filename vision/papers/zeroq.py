"""ZeroQ (Cai et al. 2020, arXiv 2001.00281): images that match the BatchNorm statistics one by one set the ranges.

The ancestor, and post-training only: nothing of the student is trained.
"""

from pathlib import Path

import torch
from torch import nn

from zsaq.train.pair import Batch
from zsaq.train.synthesis import synthesize
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.losses.priors import BatchNormStats
from zsaq.vision.losses.smoothness import ImageStats
from zsaq.vision.models import classifier
from zsaq.vision.pictures import album
from zsaq.vision.sources.pixels import Pixels


def zeroq_images(
    teacher: nn.Module, spec: ImageSpec, *, images: int = 64, steps: int = 500, lr: float = 0.5, seed: int = 0,
    folder: Path | None = None,
) -> Batch:  # fmt: skip
    """`images` images without labels, from Gaussian noise; pictures of them in `folder`.

    Adam, its rate / 10 whenever the loss has not fallen for 100 steps, as published for 500 and for fewer too, for the
    reason that `optimised_images` gives. Raises ValueError for a teacher without BatchNorm2d.
    """
    teacher = classifier(teacher)
    source = Pixels(images, spec, seed=seed)
    adam = torch.optim.Adam(source.parameters(), lr)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(adam, factor=0.1, patience=100, min_lr=1e-4)
    objective = BatchNormStats(teacher, "instance") + ImageStats()
    losses: list[float] = []
    batch = synthesize(source, objective, adam, steps, teacher, scheduler=plateau, losses=losses, stage="zeroq")
    if folder is not None:
        album(batch, folder, losses)
    return batch
