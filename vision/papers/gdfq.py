"""GDFQ (Xu et al. 2020, arXiv 2003.03603): a generator learns what the teacher knows, the student learns from both.

The generator's images are classified by the teacher as they were meant to be and match its BatchNorm statistics; the
student is fine-tuned on them with labels and the teacher's answers.
"""

from pathlib import Path

import torch
from torch import nn
from torch.optim import Adam
from torch.optim.lr_scheduler import MultiStepLR

from zsaq.quant.layers import parameter_groups
from zsaq.train.loop import Loop
from zsaq.train.objectives import CE, KL, Sum
from zsaq.train.synthesis import Source, Synthesizer
from zsaq.vision.alternation import alternate
from zsaq.vision.beginning import Start, begun
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.losses.priors import BatchNormStats, TeacherCE
from zsaq.vision.models import classifier
from zsaq.vision.sources.generators import Conditional


def synthesizer_of(source: Source, teacher: nn.Module, steps: int, lr: float = 1e-3, *, warmup: int = 0) -> Synthesizer:
    """A synthesizer on the teacher's CE and 0.1 BatchNorm statistics, by Adam; see `paced_adam`.

    Qimera and ARC differ only in the source.
    """
    adam, schedule = paced_adam(source, steps, lr, warmup)
    return Synthesizer(source, TeacherCE() + 0.1 * BatchNormStats(teacher), adam, teacher, scheduler=schedule)


def paced_adam(source: Source, steps: int, lr: float = 1e-3, warmup: int = 0) -> tuple[Adam, MultiStepLR]:
    """The lineage's Adam, lr / 10 at 1/4, 1/2, 3/4 of `steps`, but not before the first `warmup` of them are over.

    The published warm-up ends before the first quarter. In a short run the student would otherwise be held to labels
    that a source, slowed down too early, never learned to meet.
    """
    adam = Adam(source.parameters(), lr, betas=(0.5, 0.999))
    return adam, MultiStepLR(adam, [max(warmup, part * steps // 4) for part in (1, 2, 3)], 0.1)


def answer_loss(spec: ImageSpec) -> Sum:
    """CE + T^2 KL / C at T = 20: the mean over classes too, as this lineage has it, where others sum over them."""
    return CE() + (1 / spec.classes) * KL(20.0)


def sgd(student: nn.Module, lr: float, weight_decay: float = 1e-4) -> torch.optim.SGD:
    """The fine-tuning optimizer of the field: Nesterov momentum 0.9."""
    return torch.optim.SGD(parameter_groups(student, lr), lr, momentum=0.9, nesterov=True, weight_decay=weight_decay)


def learn(
    teacher: nn.Module, config: Start, source: Source, spec: ImageSpec, *, steps: int, warmup: int,
    calibration: int, lr: float, loop: Loop | None, folder: Path | None,
) -> nn.Module:  # fmt: skip
    """A student of `teacher` from what `source` learns to give, GDFQ's way; pictures of it in `folder`."""
    student = begun(teacher, config)
    synthesizer = synthesizer_of(source, teacher, warmup + calibration + steps, warmup=warmup)
    return alternate(
        student, teacher, synthesizer, answer_loss(spec), sgd(student, lr), steps,
        warmup=warmup, calibration=calibration, loop=loop, folder=folder,
    )  # fmt: skip


def gdfq(
    teacher: nn.Module, config: Start, spec: ImageSpec, images: None = None, *, steps: int = 70_000,
    warmup: int = 10_000, calibration: int = 100, batch_size: int = 16, lr: float = 1e-6, seed: int = 0,
    loop: Loop | None = None, folder: Path | None = None,
) -> nn.Module:  # fmt: skip
    """A quantized student of `teacher` without data. Defaults are the paper's for ImageNet; for CIFAR it has
    steps=79_200, warmup=800, batch_size=200, lr=1e-4.

    The generator takes `warmup` steps alone, then `calibration` while the static input ranges are set, then one for
    each of the student's `steps`. A warm-up cut short does harm: as long as the teacher does not see in the images the
    classes they were made for (its CE is not well below 1), the student's CE, the larger term, teaches it errors and
    it ends below its calibration. The student's learning rate follows `loop.schedule`. `folder` is where pictures of
    the last images go. Raises ValueError for a teacher without BatchNorm2d, and when a loss is not finite.
    """
    source = Conditional(spec, batch_size, seed=seed)
    return learn(
        classifier(teacher), config, source, spec,
        steps=steps, warmup=warmup, calibration=calibration, lr=lr, loop=loop, folder=folder,
    )  # fmt: skip
