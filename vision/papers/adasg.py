"""AdaSG (Qian et al. 2023, arXiv 2302.09572): a generator that sees the student, in a game of bounded disagreement.

Images on which teacher and student agree teach nothing, images on which they cannot agree teach the wrong thing: the
generator keeps the disagreement within margins, while the student reduces it.
"""

from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn

from zsaq.train.loop import Loop
from zsaq.train.objectives import Objective
from zsaq.train.pair import Pair
from zsaq.train.synthesis import Synthesizer
from zsaq.vision.alternation import alternate
from zsaq.vision.beginning import Start, begun
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.losses.disagreement import AgreementCE, DisagreementCE, EntropyMargin
from zsaq.vision.losses.priors import BatchNormStats
from zsaq.vision.models import classifier
from zsaq.vision.papers.gdfq import paced_adam, sgd
from zsaq.vision.sources.generators import Conditional


@final
class EntropyOfDifference(Objective):
    """-T^2 times the entropy of softmax((P - S) / T) in nats, mean over samples: least, -T^2 log C, where both agree.

    P, S: logits [B, C] of teacher and student. Raises ValueError for a temperature that is not positive.
    """

    def __init__(self, temperature: float) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; give a positive number")
        self.temperature = temperature

    def __call__(self, pair: Pair) -> Tensor:
        shares = ((pair.teacher.logits - pair.student.logits) / self.temperature).softmax(-1)
        return -(self.temperature**2) * torch.special.entr(shares).sum(-1).mean()


def contend(
    teacher: nn.Module, config: Start, spec: ImageSpec, *, margins: tuple[float, float], disagree: float,
    agree: float, steps: int, warmup: int, calibration: int, batch_size: int, lr: float, temperature: float, seed: int,
    loop: Loop | None, folder: Path | None,
) -> nn.Module:  # fmt: skip
    """The game: the generator minimises margin + disagree * DisagreementCE + agree * AgreementCE + BatchNormStats."""
    teacher = classifier(teacher)
    student = begun(teacher, config)
    source = Conditional(spec, batch_size, seed=seed)
    bounded = EntropyMargin(*margins) + disagree * DisagreementCE() + agree * AgreementCE()
    adam, schedule = paced_adam(source, warmup + calibration + steps, warmup=warmup)
    synthesizer = Synthesizer(source, bounded + BatchNormStats(teacher), adam, teacher, student, scheduler=schedule)
    return alternate(
        student, teacher, synthesizer, EntropyOfDifference(temperature), sgd(student, lr), steps,
        warmup=warmup, calibration=calibration, loop=loop, folder=folder,
    )  # fmt: skip


def adasg(
    teacher: nn.Module, config: Start, spec: ImageSpec, images: None = None, *,
    margins: tuple[float, float] = (0.3, 0.8), steps: int = 70_000, warmup: int = 10_000, calibration: int = 100,
    batch_size: int = 16, lr: float = 1e-5, temperature: float = 5.0, seed: int = 0,
    loop: Loop | None = None, folder: Path | None = None,
) -> nn.Module:  # fmt: skip
    """A quantized student of `teacher` without data. Defaults are the paper's for ImageNet (ResNet-18, MobileNetV2);
    for CIFAR it has steps=79_200, warmup=800, lr=1e-4, temperature=20.

    `margins`: of the disagreement's normalised entropy. Stages and `folder` as in `gdfq`. Raises ValueError for
    margins that are not 0 <= lower <= upper <= 1, a teacher without BatchNorm2d, and when a loss is not finite.
    """
    return contend(
        teacher, config, spec, margins=margins, disagree=0.1, agree=0.1, steps=steps, warmup=warmup,
        calibration=calibration, batch_size=batch_size, lr=lr, temperature=temperature, seed=seed, loop=loop,
        folder=folder,
    )  # fmt: skip
