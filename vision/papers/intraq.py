"""IntraQ (Zhong et al. 2022, arXiv 2111.09136): images of one class should differ, as real ones do.

Objects are shown at every size (crops while optimising), features keep a distance from their class's centre, and the
teacher need not always be sure. The student is fine-tuned with labels and the teacher's answers.
"""

from collections.abc import Iterable
from pathlib import Path

from torch import nn

from zsaq.train.loop import Loop
from zsaq.train.objectives import CE, KL
from zsaq.train.pair import Batch
from zsaq.vision.beginning import Start, begun
from zsaq.vision.fine_tuning import fine_tune
from zsaq.vision.heads import head
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.losses.priors import BatchNormStats, MarginDistance, SoftInception
from zsaq.vision.models import At, classifier
from zsaq.vision.sources.optimised import optimised_images


def intraq_images(
    teacher: nn.Module, spec: ImageSpec, *, images: int = 5120, batch_size: int = 256, steps: int = 1000,
    lr: float = 0.5, low: float = 0.95, lower: float = 0.05, upper: float = 0.8, crops: float = 0.5, seed: int = 0,
    folder: Path | None = None,
) -> Batch:  # fmt: skip
    """Images by BatchNorm statistics + SoftInception(low) + MarginDistance(lower, upper), with crops in half the steps.

    Centres are those of the batches finished before. Defaults are the paper's for CIFAR-10; for CIFAR-100 it has
    low=0.6, lower=0.02, upper=1; the script for ImageNet low=1, lower=0, upper=2, which leaves the crops alone at work.
    Raises ValueError for a teacher without BatchNorm2d or a linear head, and as `optimised_images` does.
    """
    teacher = classifier(teacher)
    last = head(teacher, spec)
    features = At(tuple(name for name, module in teacher.named_modules() if module is last))
    margin = MarginDistance(features, lower, upper)
    return optimised_images(
        teacher, BatchNormStats(teacher) + SoftInception(low, seed) + margin, spec, images=images,
        batch_size=batch_size, steps=steps, lr=lr, crops=crops, seed=seed, folder=folder, stage="intraq",
        finished=lambda batch: margin.remember(teacher, batch),
    )  # fmt: skip


def intraq(
    teacher: nn.Module, config: Start, spec: ImageSpec, images: Batch, *, steps: int = 29_400,
    batch_size: int = 16, lr: float = 1e-6, seed: int = 0, loop: Loop | None = None, folder: Path | None = None,
    ranges: Iterable[Batch] | None = None,
) -> nn.Module:  # fmt: skip
    """A student fine-tuned on `images` with their labels by CE + 20 T^2 KL, T = 20.

    Defaults are the paper's for ImageNet; for CIFAR it has batch_size=256, lr=1e-4. That diverges on the ResNet-20 that
    it was tried on, on real images too (the loss goes from 310 to 664 in 5 steps); 1e-5 does not.

    Static ranges are those of `images`, or of the `ranges` given; the paper takes the images of a GDFQ generator for
    that and throws it away. `folder` is not used. Raises ValueError as `fine_tune` does, and if the images have no
    labels.
    """
    teacher = classifier(teacher)
    return fine_tune(
        begun(teacher, config), teacher, images, CE() + 20 * KL(20.0),
        steps=steps, lr=lr, batch_size=batch_size, seed=seed, loop=loop, ranges=ranges,
    )  # fmt: skip
