"""A student fitted in one forward pass, on any images: no step of training; and one that KL steps on mixtures of them
bring nearer."""

from pathlib import Path

from torch import nn

from zsaq.quant.config import QuantConfig
from zsaq.quant.model import quantize_model
from zsaq.train.loop import Loop
from zsaq.train.objectives import KL
from zsaq.train.one_pass import one_pass
from zsaq.train.pair import Batch
from zsaq.train.randomness import generator
from zsaq.train.synthesis import seed_of
from zsaq.train.trainer import distill
from zsaq.vision.fine_tuning import shown
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.models import classifier
from zsaq.vision.papers.gdfq import sgd
from zsaq.vision.sources.crops import minibatches
from zsaq.vision.sources.mixtures import mixed, mixtures


def onepass(
    teacher: nn.Module, config: QuantConfig, spec: ImageSpec, images: Batch, *,
    damping: float = 0.01, seed: int = 0, loop: Loop | None = None, folder: Path | None = None, stage: str = "onepass",
) -> nn.Module:  # fmt: skip
    """A student of `teacher` in float32, fitted on `images` as `zsaq.one_pass` does, under any preset's `config`.

    Nothing is drawn, so `seed` changes nothing; the images' own does. `folder` is not used. Raises ValueError for
    images that are no pixel_values [B, C, S, S] of the `spec`, and as `zsaq.one_pass` does.
    """
    teacher, images = classifier(teacher), shown(images, spec)
    student = quantize_model(teacher, config).float()  # 16 bits would not keep what is rounded
    return one_pass(student, teacher, minibatches(images, 64), damping=damping, loop=loop, stage=stage)


def onepass_kl(
    teacher: nn.Module, config: QuantConfig, spec: ImageSpec, images: Batch, *, steps: int = 1000,
    batch_size: int = 32, lr: float = 1e-3, damping: float = 0.01, seed: int = 0, loop: Loop | None = None,
    folder: Path | None = None,
) -> nn.Module:  # fmt: skip
    """`onepass` on a mixture of each of the `images`, then `steps` steps of SGD (Nesterov 0.9) on KL to the teacher on
    `mixtures` of them.

    Ours. Steps on the images themselves, or on crops of them, take the student away from the teacher on real ones; on
    mixtures they bring it nearer, the more the fewer the bits (recipes/LOG.md). The learning rate, found for ResNet-20,
    follows `loop.schedule`. `folder` is not used. Raises ValueError as `onepass` and `zsaq.distill` do.
    """
    teacher, images = classifier(teacher), shown(images, spec)
    first = {"pixel_values": mixed(images["pixel_values"], generator(seed_of(seed_of(seed, 0), 2)))}
    student = onepass(teacher, config, spec, first, damping=damping, loop=loop)
    return distill(student, teacher, mixtures(images, batch_size, seed), KL(), sgd(student, lr), steps, loop)
