"""SADAG (Dung et al. 2024, arXiv 2510.07018): Genie's images, sharpened so that the gradients of a quantized student
agree around each image and differ between images.

Reconstruction then ends in a flat minimum: to first order, the loss after a step on the synthetic images, and its
sharpness, fall with the cosine between their gradient and that of the unseen ones, for which the worst neighbour of
each image stands. A student that Genie-M made of the first images tells the gradients.

Of images that are given, pixels take the place of latents; that is ours.
"""

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from zsaq.quant.config import QuantConfig
from zsaq.train.amounts import check_counts
from zsaq.train.loop import Loop
from zsaq.train.pair import Batch, Pair
from zsaq.train.synthesis import Synthesizer, numbered, seed_of
from zsaq.vision.heads import head
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.losses.matching import Diversity, GradientMatching, LayerGradient
from zsaq.vision.models import At, classifier, has_batch_norms
from zsaq.vision.papers.genie import genie, prior
from zsaq.vision.pictures import album
from zsaq.vision.sources.pixels import Unrolled
from zsaq.vision.sources.swing import Latents


def at_head(teacher: nn.Module, spec: ImageSpec | None = None) -> LayerGradient:
    """Gradients at the classifier's last layer, in closed form: the paper's choice. Raises ValueError as `head`."""
    last = head(teacher, spec)
    return LayerGradient(At(tuple(name for name, module in teacher.named_modules() if module is last)))


def unrolled(images: Batch, group: int) -> list[Unrolled]:
    """A source for each `group` of given images. Raises ValueError for a group below 1."""
    check_counts(group=group)
    return [Unrolled(part) for part in images["pixel_values"].split(group)]


def sharpen(
    groups: Sequence[Latents | Unrolled], teacher: nn.Module, student: nn.Module, *, steps: int = 500,
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
    check_counts(steps=steps)
    decay_every = max(1, round(steps / 500)) if decay_every is None else decay_every
    check_counts(decay_every=decay_every)
    layer = layer or at_head(teacher)
    student.eval().requires_grad_(False)
    diverse, device = Diversity(layer, slack), next(teacher.parameters()).device
    finished, losses = [], []
    for i, source in enumerate(groups):
        source.to(device)
        reach = radius * math.sqrt(source.latents.shape[1] / 256)
        neighbours = GradientMatching(source, layer, reach, released=released, seed=seed_of(seed, i))
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
        synthesizer = Synthesizer(
            source, objective, optimizers, teacher, student, scheduler=schedules,
            stage=numbered("sadag", i, len(groups)),
        )  # fmt: skip
        batch = synthesizer.finish(steps)
        diverse.remember(Pair(teacher, student, batch, layer.captures))
        finished.append(batch["pixel_values"].cpu())
        source.cpu()
        losses += synthesizer.losses
    sharpened = {"pixel_values": torch.cat(finished)}
    if folder is not None:
        album(sharpened, folder, losses)
    return sharpened


def sadag(
    teacher: nn.Module, config: QuantConfig, spec: ImageSpec, images: Batch | Sequence[Latents], *,
    steps: int = 20_000, batch_size: int = 32, warm_steps: int = 4000, sharpening: int = 500, group: int = 128,
    layer: LayerGradient | None = None, radius: float = 2.0, released: bool = False, decay_every: int | None = None,
    lr_bits: float | None = None, learn: Callable[..., nn.Module] | None = None, seed: int = 0,
    loop: Loop | None = None, folder: Path | None = None,
) -> nn.Module:  # fmt: skip
    """A student of `teacher` whose rounding is learned on sharpened `images`, `steps` steps a block.

    `images` are Genie's as their trained sources (of `genie_sources`), sharpened in their latents; or a batch, which is
    sharpened in its pixels `group` at a time. First Genie-M makes a student of them in `warm_steps` steps a block, then
    each group takes `sharpening` steps against it (`sharpen`, which explains `layer`, `radius`, `released`
    and `decay_every`); last, `learn` fits a fresh student: by default Genie-M, whose rate of rounding is `lr_bits`.
    The sources given stay as they are. Defaults are the paper's, the direction apart. `folder` is where pictures of the
    sharpened images go. Raises ValueError as `zsaq.reconstruct` and `sharpen` do.
    """
    check_counts(steps=steps, batch_size=batch_size, warm_steps=warm_steps, sharpening=sharpening)
    loop = loop or Loop()
    teacher = classifier(teacher).to(loop.accelerator.device)
    layer, learn = layer or at_head(teacher, spec), learn or partial(genie, lr_bits=lr_bits)
    if isinstance(images, Sequence):
        groups: Sequence[Latents | Unrolled] = copy.deepcopy(images)
        first = {"pixel_values": torch.cat([source()["pixel_values"].detach().cpu() for source in groups])}
    else:
        first, groups = {"pixel_values": images["pixel_values"]}, unrolled(images, group)
    student = genie(
        teacher, config, spec, first, steps=warm_steps, batch_size=batch_size, lr_bits=lr_bits, seed=seed, loop=loop,
        stage="warm",
    )  # fmt: skip
    sharp = sharpen(
        groups, teacher, student, steps=sharpening, layer=layer, radius=radius, released=released,
        decay_every=decay_every, seed=seed, folder=folder,
    )  # fmt: skip
    return learn(teacher, config, spec, sharp, steps=steps, batch_size=batch_size, seed=seed, loop=loop)
