"""PLF (Fan et al. 2024, "Data-Free Quantization via Pseudo-label Filtering", CVPR): the teacher's own labels, weighed.

The label an image was made for may be wrong. Where the teacher is sure, its first class counts; where not, its first
two, and ever more images are treated as unsure. Features are matched beside the answers.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn

from zsaq.train.loop import Loop
from zsaq.train.objectives import KL, Objective
from zsaq.train.pair import Batch, Capture, Pair
from zsaq.vision.beginning import Start, begun
from zsaq.vision.fine_tuning import fine_tune
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.losses.features import Where
from zsaq.vision.losses.labels import PseudoCE, scheduled
from zsaq.vision.losses.priors import BatchNormStats, TeacherCE
from zsaq.vision.models import classifier, feature_places
from zsaq.vision.sources.crops import views
from zsaq.vision.sources.optimised import optimised_images


@final
class FeatureMSE(Objective):
    """Sum over the captured modules of the mean squared difference of what they answer."""

    def __init__(self, where: Where) -> None:
        self.captures = (Capture("teacher", where), Capture("student", where))

    def __call__(self, pair: Pair) -> Tensor:
        sides = (pair.teacher.seen[self.captures[0]], pair.student.seen[self.captures[1]])
        return torch.stack(
            [(p.float() - q.float()).square().mean() for (_, p), (_, q) in zip(*sides, strict=True)]
        ).sum()


def plf_images(
    teacher: nn.Module, spec: ImageSpec, *, images: int = 5120, batch_size: int = 256, steps: int = 1000,
    lr: float = 0.5, inception: float = 0.1, seed: int = 0, folder: Path | None = None,
) -> Batch:  # fmt: skip
    """Images by BatchNorm statistics + `inception` times the teacher's CE, optimised as `optimised_images` does.

    The default is the paper's for ImageNet; for CIFAR it has inception=10. Raises ValueError for a teacher without
    BatchNorm2d, and as `optimised_images` does.
    """
    teacher = classifier(teacher)
    return optimised_images(
        teacher, BatchNormStats(teacher) + inception * TeacherCE(), spec, images=images, batch_size=batch_size,
        steps=steps, lr=lr, seed=seed, folder=folder, stage="plf",
    )  # fmt: skip


def check_falling(highest: float, lowest: float) -> None:
    """Raises ValueError for entropies between which a threshold cannot fall."""
    if not 0 <= lowest <= highest <= 1:
        raise ValueError(f"lowest is {lowest}, highest {highest}; give shares of log C, 0 <= lowest <= highest <= 1")


def plf(
    teacher: nn.Module, config: Start, spec: ImageSpec, images: Batch, *, steps: int = 20_000,
    batch_size: int = 16, lr: float = 1e-5, highest: float = 0.4, lowest: float = 0.1, unsure: float = 0.5,
    features: float = 4000.0, seed: int = 0, loop: Loop | None = None, folder: Path | None = None,
    ranges: Iterable[Batch] | None = None,
) -> nn.Module:  # fmt: skip
    """A student fine-tuned on `images` by T^2 KL + PseudoCE + `features` * FeatureMSE; their labels are not read.

    The entropy up to which the teacher is held to be sure falls linearly from `highest` to `lowest`; unsure images
    weigh `unsure`. Defaults are the paper's for ImageNet; for CIFAR it has lr=1e-3, highest=0.5, lowest=0.2,
    unsure=0.3, features=100. It does not state T, the modules compared, batch size and steps: here T = 20,
    `feature_places` and what the methods beside it take. Static ranges are those of `images`, or of the `ranges` given:
    the methods beside it take the images of a GDFQ generator for that and throw it away. `folder` is not used.
    Raises ValueError as `fine_tune` does.
    """
    check_falling(highest, lowest)
    teacher, loop = classifier(teacher), loop or Loop()
    labels = PseudoCE(highest, unsure)
    return fine_tune(
        begun(teacher, config), teacher, images,
        KL(20.0) + labels + features * FeatureMSE(feature_places(teacher)), steps=steps, lr=lr, batch_size=batch_size,
        loop=loop, ranges=ranges,
        batches=scheduled(views(images, batch_size, seed), labels, lowest, steps * loop.accumulate),
    )  # fmt: skip
