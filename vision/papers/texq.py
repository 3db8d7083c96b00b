"""TexQ (Chen et al. 2023, "Zero-shot Network Quantization with Texture Feature Distribution Calibration", NeurIPS).

EXPERIMENTAL: neither code nor formulas are public; this is our reading of the abstract and of what others say. One
image a class is optimised first (calibration centres, no texture prevailing); a generator is then drawn towards the
teacher's statistics, loosely in shallow layers, and towards the centres' in deep ones; the student matches the
teacher's answers on mixed images. Its figures must not be read as the paper's.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import nn

from zsaq.quant.ranges import known
from zsaq.train.amounts import check_counts
from zsaq.train.loop import Loop
from zsaq.train.objectives import KL
from zsaq.train.pair import Batch
from zsaq.train.randomness import generator
from zsaq.train.stages import stage
from zsaq.train.streams import Mapped
from zsaq.train.synthesis import Synthesizer, process_index, seed_of
from zsaq.train.trainer import calibrate, distill
from zsaq.vision.alternation import check_turns
from zsaq.vision.beginning import Start, begun
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.losses.moments import Moments, moments_of
from zsaq.vision.losses.priors import BatchNormStats, TeacherCE, layered
from zsaq.vision.losses.smoothness import TextureEnergy
from zsaq.vision.models import classifier
from zsaq.vision.papers.gdfq import paced_adam, sgd
from zsaq.vision.pictures import album
from zsaq.vision.sources.crops import minibatches
from zsaq.vision.sources.generators import Conditional
from zsaq.vision.sources.optimised import optimised_images


def centres(
    teacher: nn.Module, spec: ImageSpec, *, batch_size: int = 256, steps: int = 1500, lr: float = 0.05,
    texture: float = 0.0, seed: int = 0, folder: Path | None = None,
) -> list[Moments]:  # fmt: skip
    """Calibration centres: the statistics, at each BatchNorm2d, of one optimised image for every class.

    5 CE + BatchNormStats (0.2 in shallow, 1.1 in deep layers) + `texture` * TextureEnergy, Adam at a constant rate; as
    SynQ's released code has it, which takes no texture. For `BatchNormStats(targets=...)`. Raises ValueError as
    `optimised_images` does.
    """
    teacher = classifier(teacher)
    objective = (
        5 * TeacherCE() + BatchNormStats(teacher, weights=layered(teacher, 0.2, 1.1)) + texture * TextureEnergy()
    )
    images = optimised_images(
        teacher, objective, spec, images=spec.classes, batch_size=batch_size, steps=steps, lr=lr, least=lr,
        labels=torch.arange(spec.classes), seed=seed, folder=folder, stage="centres",
    )  # fmt: skip
    return moments_of(teacher, minibatches(images, batch_size))


def mixup(batches: Iterator[Batch], seed: int = 0) -> Mapped:
    """Each image mixed with another of its batch, in one random proportion a batch. Labels are not mixed: they go."""
    rng = generator(seed_of(seed, process_index()))

    def mixed(batch: Batch) -> Batch:
        pixels = batch["pixel_values"]
        share = float(torch.rand((), generator=rng))
        other = torch.randperm(len(pixels), generator=rng).to(pixels.device)
        return {"pixel_values": share * pixels + (1 - share) * pixels[other]}

    return Mapped(mixed, batches)


def texq(
    teacher: nn.Module, config: Start, spec: ImageSpec, images: None = None, *, steps: int = 70_000,
    warmup: int = 10_000, calibration: int = 100, batch_size: int = 16, lr: float = 1e-6, centre_steps: int = 1500,
    texture: float = 1.0, centred: float = 1.0, seed: int = 0, loop: Loop | None = None, folder: Path | None = None,
) -> nn.Module:  # fmt: skip
    """A quantized student of `teacher` without data. Experimental, see above; all weights and schedules are guesses.

    The generator takes `warmup` steps alone, then `calibration` while the static ranges are set, then one for each of
    the student's `steps`. `folder` is where pictures of the centres and of the last images go. Raises ValueError for a
    teacher without BatchNorm2d, images below 8 pixels unless `texture` is 0, and losses that are not finite.
    """
    check_turns(steps, warmup, calibration)
    check_counts(centre_steps=centre_steps)
    teacher, loop = classifier(teacher), loop or Loop()
    teacher.to(loop.accelerator.device)
    source = Conditional(spec, batch_size, seed=seed)
    targets = centres(
        teacher, spec, steps=centre_steps, texture=texture, seed=seed, folder=folder and folder / "centres"
    )
    objective = TeacherCE() + BatchNormStats(teacher, weights=layered(teacher, 0.2, 1.1))
    objective += centred * BatchNormStats(teacher, weights=layered(teacher, 0.0, 1.0), targets=targets)
    adam, schedule = paced_adam(source, warmup + calibration + steps, warmup=warmup)
    synthesizer = Synthesizer(source, objective, adam, teacher, scheduler=schedule, stage="texq")
    synthesizer.advance(warmup)
    student = begun(teacher, config)
    with stage("calibrate", student=student, synthesizer=synthesizer) as at:
        if at.todo and not known(student):
            calibrate(student, islice(synthesizer, calibration), loop.accelerator)
    distill(student, teacher, mixup(synthesizer, seed), 20 * KL(20.0), sgd(student, lr), steps, loop)
    if folder is not None:
        album(next(synthesizer), folder, synthesizer.losses)
    return student
