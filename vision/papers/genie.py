"""Genie (Jeon et al. 2023, arXiv 2212.04780): images from latents that are learned with a generator of their own, for
a student that learns its rounding block by block.

The only prior is that of BatchNorm statistics, on a teacher whose strided convolutions swing; Genie-M then learns bits,
scales and steps together.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from zsaq.quant.config import QuantConfig
from zsaq.quant.model import quantize_model
from zsaq.train.amounts import check_counts
from zsaq.train.loop import Loop
from zsaq.train.objectives import Sum
from zsaq.train.pair import Batch
from zsaq.train.reconstruction import reconstruct, scaled_rate
from zsaq.train.synthesis import Synthesizer, numbered, seed_of
from zsaq.train.trainer import calibrate
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.losses.priors import BatchNormStats
from zsaq.vision.losses.smoothness import ImageStats
from zsaq.vision.models import batch_norms, blocks, classifier
from zsaq.vision.pictures import album
from zsaq.vision.sources.crops import minibatches
from zsaq.vision.sources.swing import Latents, swing


def prior(teacher: nn.Module) -> Sum:
    """sum_l [mean_c (m - mu)^2 + mean_c (s - sigma)^2] over BatchNorms, and the same of the image with 0 and 1."""
    return len(batch_norms(teacher)) * BatchNormStats(teacher, "batch", "deviation") + ImageStats()


def sizes(images: int, group: int) -> list[int]:
    """Of the groups that images are made in; one image that is left over goes to the last. Raises ValueError for fewer
    than 2 images or a group of fewer."""
    check_counts(2, images=images, group=group)  # of one image there are no statistics
    counts = [min(group, images - start) for start in range(0, images, group)]
    return counts if counts[-1] > 1 else [*counts[:-2], group + 1]


def synthesizer_of(source: Latents, teacher: nn.Module, stage: str) -> Synthesizer:
    """Adam for latents (0.1, / 10 on a plateau of 100 steps) and decoder (0.01, x 0.95 every 100 steps) of a group."""
    latents = torch.optim.Adam([source.latents], 0.1)
    decoder = torch.optim.Adam(source.decoder.parameters(), 0.01)
    schedules = (ReduceLROnPlateau(latents, patience=100, min_lr=1e-4), StepLR(decoder, 100, 0.95))
    return Synthesizer(source, prior(teacher), (latents, decoder), teacher, scheduler=schedules, stage=stage)


def made(
    teacher: nn.Module, spec: ImageSpec, images: int, group: int, steps: int, seed: int, folder: Path | None,
    keep: Callable[[Latents], object],
) -> Batch:  # fmt: skip
    """The images of the last step of each group, on the host; `keep` is told each trained source, whose decoder is
    gone before the next is built, unless it is kept."""
    check_counts(steps=steps)
    counts, teacher = sizes(images, group), classifier(teacher)

    def of_group(turn: int) -> tuple[Tensor, list[float]]:
        source = Latents(counts[turn], spec, seed=seed_of(seed, turn))
        synthesizer = synthesizer_of(source, teacher, numbered("genie", turn, len(counts)))
        with swing(teacher, seed_of(seed, turn)):
            pixels = synthesizer.finish(steps)["pixel_values"].cpu()
        keep(source.cpu())
        return pixels, synthesizer.losses

    finished = [of_group(turn) for turn in range(len(counts))]
    batch = {"pixel_values": torch.cat([pixels for pixels, _ in finished])}
    if folder is not None:
        album(batch, folder, [loss for _, losses in finished for loss in losses])
    return batch


def genie_sources(
    teacher: nn.Module, spec: ImageSpec, *, images: int = 1024, group: int = 128, steps: int = 4000, seed: int = 0,
    folder: Path | None = None,
) -> tuple[list[Latents], Batch]:  # fmt: skip
    """Genie-D's sources, trained, which SADAG trains on, and what `genie_images` makes of them."""
    groups: list[Latents] = []
    return groups, made(teacher, spec, images, group, steps, seed, folder, groups.append)


def genie_images(
    teacher: nn.Module, spec: ImageSpec, *, images: int = 1024, group: int = 128, steps: int = 4000, seed: int = 0,
    folder: Path | None = None,
) -> Batch:  # fmt: skip
    """Genie-D: `images` images without labels, pixel_values float [images, C, S, S] on the host, `group` at a time.

    Each group has a decoder of its own (103 million numbers at 224 pixels), of which one is held at a time. Works on
    the teacher's device, and leaves it in eval mode and without gradients; `folder` is where pictures go. Raises
    ValueError for a teacher without BatchNorm2d, a group of one image and a loss that is not finite.
    """
    return made(teacher, spec, images, group, steps, seed, folder, lambda source: None)


def genie(
    teacher: nn.Module, config: QuantConfig, spec: ImageSpec, images: Batch, *, steps: int = 20_000,
    batch_size: int = 32, lr_bits: float | None = None, seed: int = 0, loop: Loop | None = None,
    folder: Path | None = None, stage: str = "genie",
) -> nn.Module:  # fmt: skip
    """Genie-M: a student of `teacher` whose rounding is learned on `images`, those of `genie_images` or any others.

    `steps` steps for each block. `config`: `zsaq.vision.presets.brecq("w4a4", teacher)` is its preset.
    `lr_bits`: the learning rate of rounding, by default the `scaled_rate` of 1e-3: as published at the published 20,000
    steps, more in fewer. That rule is ours, and its form was found on the test images of digits and of CIFAR-10. Scales
    and steps keep their published rates: scaled as well, students agreed no better with the teacher on other synthetic
    images.
    `folder` is not used. Raises ValueError as `zsaq.reconstruct` does.
    """
    check_counts(steps=steps, batch_size=batch_size)
    teacher, loop = classifier(teacher), loop or Loop()
    student = calibrate(quantize_model(teacher, config), minibatches(images, 64), loop.accelerator)
    return reconstruct(
        student, teacher, minibatches(images, 64), blocks(teacher),
        steps=steps, batch_size=batch_size, lr_bits=scaled_rate(1e-3, steps) if lr_bits is None else lr_bits,
        seed=seed, loop=loop, stage=stage,
    )  # fmt: skip
