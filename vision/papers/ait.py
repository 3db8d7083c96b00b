"""AIT, "It's all in the teacher" (Choi et al. 2022, arXiv 2203.17008): the teacher's answers alone, steps inundated.

Cross-entropy pulls a student away from flat minima of the KL divergence; without it the steps become too small to
change integers, so each is stretched until a share of them changes. Any generator method hosts it: GDFQ, ARC, Qimera.
"""

from pathlib import Path

from torch import nn

from zsaq.train.inundation import GradientInundation, weight_codes
from zsaq.train.loop import Loop
from zsaq.train.objectives import KL
from zsaq.train.synthesis import Source
from zsaq.vision.alternation import alternate
from zsaq.vision.beginning import Start, begun
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.models import classifier
from zsaq.vision.papers.gdfq import sgd, synthesizer_of
from zsaq.vision.sources.generators import Conditional

EPOCH = 200  # steps


def ait(
    teacher: nn.Module, config: Start, spec: ImageSpec, images: None = None, *, source: Source | None = None,
    steps: int = 70_000, warmup: int = 10_000, calibration: int = 100, batch_size: int = 16, lr: float = 1e-4,
    share: float = 1e-4, cap: int = 1024, seed: int = 0, loop: Loop | None = None, folder: Path | None = None,
) -> nn.Module:  # fmt: skip
    """A quantized student of `teacher` without data. `source` is the host's: `arc.SearchedGenerator` or
    `qimera.Superposed`; by default that of GDFQ, `generators.Conditional` of `batch_size` and `seed`.

    Stages as in `gdfq`. Defaults are the paper's for ImageNet; for CIFAR it has steps=79_200, warmup=800, share=1e-3,
    batches of 200. Of each layer a `share` of the codes changes at every step, unless that takes a step more than `cap`
    times as long (128 in the first 200 steps); learning rate and share follow `loop.schedule`. `folder` is where
    pictures of the last images go.

    The objective is T^2 KL / C at T = 20, the mean over the `spec`'s C classes that GDFQ's lineage takes too. Its
    scale is part of the method: steps are stretched but never shortened, those of norms and biases not even stretched.
    The sum over 1,000 classes would change more than a `share` of the codes nearly everywhere by itself. Raises
    ValueError for a teacher without BatchNorm2d, and when a loss is not finite.
    """
    teacher = classifier(teacher)
    student = begun(teacher, config)
    source = source or Conditional(spec, batch_size, seed=seed)
    synthesizer = synthesizer_of(source, teacher, warmup + calibration + steps, warmup=warmup)
    optimizer = GradientInundation(sgd(student, lr, 0.0), weight_codes(student), share, cap, warmup=EPOCH)
    return alternate(
        student, teacher, synthesizer, (1 / spec.classes) * KL(20.0), optimizer, steps,
        warmup=warmup, calibration=calibration, loop=loop, folder=folder,
    )  # fmt: skip


def divergence_alone(
    teacher: nn.Module, config: Start, spec: ImageSpec, images: None = None, *, steps: int = 70_000,
    warmup: int = 10_000, calibration: int = 100, batch_size: int = 16, lr: float = 1e-4, seed: int = 0,
    loop: Loop | None = None, folder: Path | None = None,
) -> nn.Module:  # fmt: skip
    """AIT's control on GDFQ's source: the KL divergence summed over classes, with plain steps at a learning rate of its
    own, which nobody has tuned yet. Arguments as in `ait`."""
    teacher = classifier(teacher)
    student = begun(teacher, config)
    source = Conditional(spec, batch_size, seed=seed)
    synthesizer = synthesizer_of(source, teacher, warmup + calibration + steps, warmup=warmup)
    return alternate(
        student, teacher, synthesizer, KL(20.0), sgd(student, lr, 0.0), steps,
        warmup=warmup, calibration=calibration, loop=loop, folder=folder,
    )  # fmt: skip
