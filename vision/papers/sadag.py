"""SADAG (Dung et al. 2024, arXiv 2510.07018): Genie's images, sharpened so that the gradients of a quantized student
agree around each image and differ between images.

Reconstruction then ends in a flat minimum: to first order, the loss after a step on the synthetic images, and its
sharpness, fall with the cosine between their gradient and that of the unseen ones, for which the worst neighbour of
each image stands. A student that Genie-M made of the first images tells the gradients.

Of a teacher without BatchNorm, and of images that are given, pixels take the place of latents; that is ours.
"""

import copy
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from zsaq.quant.config import QuantConfig
from zsaq.train.pair import Batch, Pair
from zsaq.train.synthesis import Synthesizer, stream
from zsaq.train.trainer import Loop
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.losses.matching import Diversity, GradientMatching, LayerGradient
from zsaq.vision.models import At, classifier, has_batch_norms, head
from zsaq.vision.papers.genie import genie_m, prior, sources, train
from zsaq.vision.papers.psaq import psaq_images
from zsaq.vision.pictures import album
from zsaq.vision.sources.pixels import Unrolled
from zsaq.vision.sources.swing import Latents


def at_head(teacher: nn.Module) -> LayerGradient:
    """Gradients at the classifier's last layer, in closed form: the paper's choice."""
    last = head(teacher)
    return LayerGradient(At(tuple(name for name, module in teacher.named_modules() if module is last)))


def unrolled(images: Batch, group: int) -> list[Unrolled]:
    """A source for each `group` of given images. Raises ValueError for a group below 1."""
    if group < 1:
        raise ValueError(f"group is {group}; give at least 1 image")
    return [Unrolled(part) for part in images["pixel_values"].split(group)]


def sharpen(
    made: Sequence[Latents | Unrolled], teacher: nn.Module, student: nn.Module, *, steps: int = 500,
    layer: LayerGradient | None = None, radius: float = 2.0, slack: float = 0.0, diversity: float = 1.0,
    matching: float = 1.0, released: bool = False, decay_every: int | None = None, lr_pixels: float = 1e-2,
    seed: int = 0, folder: Path | None = None,
) -> Batch:  # fmt: skip
    """The images of the sources after `steps` more steps each, without swinging, against a fixed student; on the host.

    Minimises Genie's prior (none for a teacher without BatchNorm) + diversity * Diversity + matching * GradientMatching
    (eq. 21). Adam: latents 1e-5 (/ 10 on a plateau of a fifth of the steps), decoder 1e-4, or `Unrolled` pixels
    `lr_pixels`, both x 0.95 every `decay_every` steps, by default steps / 500: the released 1 for 500 steps, which
    stops them after about 100. `radius`: of neighbours in 256 latents; pixels move by as much each. The neighbour's
    direction is ours (`GradientMatching`), `released` gives theirs. `layer`: where gradients are taken, by default the
    head. Raises ValueError for numbers of steps below 1.
    """
    if steps < 1 or (decay_every is not None and decay_every < 1):
        raise ValueError(f"steps is {steps}, decay_every {decay_every}; give at least 1")
    layer = layer or at_head(teacher)
    decay_every = decay_every or max(1, round(steps / 500))
    student.eval().requires_grad_(False)
    diverse, device = Diversity(layer, slack), next(teacher.parameters()).device
    finished, losses = [], []
    for i, source in enumerate(made):
        source.to(device)
        reach = radius * math.sqrt(source.latents.shape[1] / 256)
        neighbours = GradientMatching(source, layer, reach, released=released, seed=stream(seed, i))
        objective = diversity * diverse + matching * neighbours
        if has_batch_norms(teacher):
            objective = prior(teacher) + objective
        if isinstance(source, Latents):
            latents = torch.optim.Adam([source.latents], 1e-5)
            decoder = torch.optim.Adam(source.decoder.parameters(), 1e-4)
            plateau = ReduceLROnPlateau(latents, patience=max(1, steps // 5), min_lr=1e-6)
            optimizers, schedules = [latents, decoder], [plateau, StepLR(decoder, decay_every, 0.95)]
        else:
            pixels = torch.optim.Adam([source.latents], lr_pixels)
            optimizers, schedules = [pixels], [StepLR(pixels, decay_every, 0.95)]
        synthesizer = Synthesizer(source, objective, optimizers, teacher, student, scheduler=schedules, stage="sadag")
        for _ in range(steps - 1):
            next(synthesizer)
        batch = next(synthesizer)
        diverse.remember(Pair(teacher, student, batch, layer.captures))
        finished.append(batch["pixel_values"].cpu())
        source.cpu()
        losses += synthesizer.losses
    sharpened = {"pixel_values": torch.cat(finished)}
    if folder is not None:
        album(sharpened, folder, losses)
    return sharpened


def psaq_start(
    teacher: nn.Module, spec: ImageSpec, images: int, group: int, steps: int, seed: int = 0, folder: Path | None = None
) -> Batch:
    """PSAQ-ViT's images, `group` at a time: what stands for Genie's where there is no BatchNorm."""
    made = []
    for i, first in enumerate(range(0, images, group)):
        drawn = folder and folder / str(i)
        count = min(group, images - first)
        made.append(psaq_images(teacher, spec, images=count, steps=steps, seed=stream(seed, i), folder=drawn))
    return {"pixel_values": torch.cat([batch["pixel_values"] for batch in made])}


def sadag_images(
    teacher: nn.Module, config: QuantConfig, spec: ImageSpec, *, images: int = 1024, group: int = 128,
    steps: int = 4000, unit_steps: int = 4000, sharpening: int = 500, layer: LayerGradient | None = None,
    radius: float = 2.0,
    released: bool = False, decay_every: int | None = None, lr_bits: float | None = None,
    start: Batch | Sequence[Latents] | None = None, batch_size: int = 32, seed: int = 0, loop: Loop | None = None,
    folder: Path | None = None,
) -> Batch:  # fmt: skip
    """Genie's images (`steps`), a student made of them (`unit_steps` a unit), then `sharpening` steps against it.

    pixel_values float [images, C, S, S] on the host, no labels. `config` is that of the student to come, `lr_bits`
    that of `genie_m`, `decay_every` that of `sharpen`. `start`: Genie's sources that are trained already
    (`zsaq.vision.papers.genie.train`), which stay as they are, or images, which are sharpened in their pixels, all of
    them; a teacher without BatchNorm begins with PSAQ-ViT's (`psaq_images`, whose normalisation is ImageNet's; give the
    images of another as `start`). `folder` is where pictures go, of the first images in its `first`. Raises ValueError
    as `genie_images`, `psaq_images`, `zsaq.reconstruct` and `sharpen` do.
    """
    loop = loop or Loop()
    teacher = classifier(teacher).to(loop.accelerator.device)
    drawn = folder and folder / "first"
    if start is None and has_batch_norms(teacher):
        made: Sequence[Latents | Unrolled] = (fresh := sources(images, group, spec, seed))
        first = train(fresh, teacher, steps, seed, drawn)
    elif isinstance(start, Sequence):
        made = copy.deepcopy(start)
        first = {"pixel_values": torch.cat([source()["pixel_values"].detach().cpu() for source in made])}
    else:
        start = start or psaq_start(teacher, spec, images, group, steps, seed, drawn)
        first, made = {"pixel_values": start["pixel_values"]}, unrolled(start, group)
    student = genie_m(
        teacher, config, first, steps=unit_steps, batch_size=batch_size, lr_bits=lr_bits, seed=seed, loop=loop,
        stage="warm",
    )  # fmt: skip
    return sharpen(
        made, teacher, student, steps=sharpening, layer=layer, radius=radius, released=released,
        decay_every=decay_every, seed=seed, folder=folder,
    )  # fmt: skip


def sadag(
    teacher: nn.Module, config: QuantConfig, spec: ImageSpec, *, images: int = 1024, group: int = 128,
    steps: int = 4000, warm_steps: int = 4000, sharpening: int = 500, unit_steps: int = 20_000,
    layer: LayerGradient | None = None,
    radius: float = 2.0, released: bool = False, decay_every: int | None = None, lr_bits: float | None = None,
    start: Batch | Sequence[Latents] | None = None, batch_size: int = 32, seed: int = 0, loop: Loop | None = None,
    folder: Path | None = None,
) -> nn.Module:  # fmt: skip
    """A fresh student of `teacher` by Genie-M on `sadag_images`. Defaults are the paper's, the direction apart.

    `warm_steps`: of the first student, a unit; `unit_steps`: of the last. Raises ValueError as `sadag_images` does.
    """
    loop = loop or Loop()
    teacher = classifier(teacher).to(loop.accelerator.device)
    batch = sadag_images(
        teacher, config, spec, images=images, group=group, steps=steps, unit_steps=warm_steps, sharpening=sharpening,
        layer=layer, radius=radius, released=released, decay_every=decay_every, lr_bits=lr_bits, start=start,
        batch_size=batch_size, seed=seed, loop=loop, folder=folder,
    )  # fmt: skip
    return genie_m(
        teacher, config, batch, steps=unit_steps, batch_size=batch_size, lr_bits=lr_bits, seed=seed, loop=loop
    )
