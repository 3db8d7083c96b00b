"""HAST (Li et al. 2023, arXiv 2303.13826): hard samples are made, made harder while training, and features aligned.

Images carry a focal cross-entropy, so that those which the teacher finds hard count most. The student matches answers
and channel attention on each image and at the worst point near it, without labels.
"""

from collections.abc import Iterable
from pathlib import Path

from torch import nn

from zsaq.train.loop import Loop
from zsaq.train.objectives import KL, AtWorstInput, Sum
from zsaq.train.pair import Batch
from zsaq.vision.beginning import Start, begun
from zsaq.vision.fine_tuning import fine_tune
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.losses.features import ChannelAttention
from zsaq.vision.losses.priors import BatchNormStats, TeacherCE
from zsaq.vision.models import classifier, feature_places
from zsaq.vision.sources.optimised import optimised_images


def hast_images(
    teacher: nn.Module, spec: ImageSpec, *, images: int = 5120, batch_size: int = 256, steps: int = 1000,
    lr: float = 0.5, hard: float = 0.1, focus: float = 0.5, crops: float = 0.5, seed: int = 0,
    folder: Path | None = None,
) -> Batch:  # fmt: skip
    """Hard images: BatchNorm statistics plus `hard` times the focal CE (sec. 3.2), as `optimised_images` makes them.

    Defaults are the paper's for ImageNet; for CIFAR it has hard=10, focus=2, crops=0. Raises ValueError for a teacher
    without BatchNorm2d, and as `optimised_images` does.
    """
    teacher = classifier(teacher)
    return optimised_images(
        teacher, BatchNormStats(teacher) + hard * TeacherCE(focus), spec, images=images, batch_size=batch_size,
        steps=steps, lr=lr, crops=crops, scale=(0.4, 1.0), seed=seed, folder=folder, stage="hast",
    )  # fmt: skip


def hast_objective(teacher: nn.Module, attention: float, epsilon: float) -> Sum:
    """L + L at the worst input within `epsilon`, L = 20 T^2 KL + `attention` * ChannelAttention, T = 20 (sec. 3.3)."""
    clean = 20 * KL(20.0) + attention * ChannelAttention(feature_places(teacher))
    return clean + 1.0 * AtWorstInput(clean, epsilon)


def hast(
    teacher: nn.Module, config: Start, spec: ImageSpec, images: Batch, *, steps: int = 29_400,
    batch_size: int = 16, lr: float = 1e-6, attention: float = 4000.0, epsilon: float = 0.01, seed: int = 0,
    loop: Loop | None = None, folder: Path | None = None, ranges: Iterable[Batch] | None = None,
) -> nn.Module:  # fmt: skip
    """A student fine-tuned on `images`, those of `hast_images` or any others; labels are not needed.

    Defaults are the paper's for ImageNet; for CIFAR it has batch_size=256, lr=1e-5 and attention=1000 (10 classes), or
    attention=2000, epsilon=0.02 (100 classes). Static ranges are those of `images`, or of the `ranges` given; the paper
    takes the images of a GDFQ generator for that and throws it away. `folder` is not used. Raises ValueError as
    `fine_tune` does.
    """
    teacher = classifier(teacher)
    return fine_tune(
        begun(teacher, config), teacher, images, hast_objective(teacher, attention, epsilon),
        steps=steps, lr=lr, batch_size=batch_size, seed=seed, loop=loop, ranges=ranges,
    )  # fmt: skip
