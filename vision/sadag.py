"""SADAG (Dung et al. 2024, arXiv 2510.07018): Genie's images, sharpened so that the gradients of a quantized student
agree around each image and differ between images.

Reconstruction then ends in a flat minimum: to first order, the loss after a step on the synthetic images, and its
sharpness, fall with the cosine between their gradient and that of the unseen ones, for which the worst neighbour of
each image stands. A student that Genie-M made of the first images tells the gradients.
"""

from pathlib import Path

import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from zsaq.config import QuantConfig
from zsaq.pair import Batch, Pair
from zsaq.synthesis import Player
from zsaq.trainer import Loop
from zsaq.vision.frame import Frame
from zsaq.vision.genie import genie_m, prior, sources, train
from zsaq.vision.matching import Diversity, GradientMatching, LayerGradient
from zsaq.vision.models import At, classifier, head
from zsaq.vision.pictures import album
from zsaq.vision.swing import Latents


def at_head(teacher: nn.Module) -> LayerGradient:
    """Gradients at the classifier's last layer, in closed form: the paper's choice."""
    last = head(teacher)
    return LayerGradient(At(tuple(name for name, module in teacher.named_modules() if module is last)))


def sharpen(
    made: list[Latents], teacher: nn.Module, student: nn.Module, *, steps: int = 500,
    layer: LayerGradient | None = None, radius: float = 2.0, slack: float = 0.0, diversity: float = 1.0,
    matching: float = 1.0, released: bool = False, decay_every: int = 1, seed: int = 0, folder: Path | None = None,
) -> Batch:  # fmt: skip
    """The images of the sources after `steps` more steps each, without swinging, against a fixed student; on the host.

    Minimises Genie's prior + diversity * Diversity + matching * GradientMatching (eq. 21). Adam: latents 1e-5
    (plateau), decoder 1e-4, x 0.95 every `decay_every` steps; the released 1 stops it after about 100 steps. The
    neighbour's direction is ours (`GradientMatching`), `released` gives theirs. `layer`: where gradients are taken, by
    default the head.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; give at least 1")
    layer = layer or at_head(teacher)
    student.eval().requires_grad_(False)
    diverse, device = Diversity(layer, slack), next(teacher.parameters()).device
    finished, losses = [], []
    for i, source in enumerate(made):
        source.to(device)
        neighbours = GradientMatching(source, layer, radius, released=released, seed=seed + i)
        objective = prior(teacher) + diversity * diverse + matching * neighbours
        latents = torch.optim.Adam([source.latents], 1e-5)
        decoder = torch.optim.Adam(source.decoder.parameters(), 1e-4)
        schedules = (ReduceLROnPlateau(latents, patience=100, min_lr=1e-6), StepLR(decoder, decay_every, 0.95))
        player = Player(source, objective, (latents, decoder), teacher, student, scheduler=schedules, stage="sadag")
        for _ in range(steps - 1):
            next(player)
        batch = next(player)
        diverse.remember(Pair(teacher, student, batch, layer.taps))
        finished.append(batch["pixel_values"].cpu())
        source.cpu()
        losses += player.losses
    sharpened = {"pixel_values": torch.cat(finished)}
    if folder is not None:
        album(sharpened, folder, losses)
    return sharpened


def sadag_images(
    teacher: nn.Module, config: QuantConfig, frame: Frame, *, images: int = 1024, group: int = 128, steps: int = 4000,
    unit_steps: int = 4000, sharpening: int = 500, layer: LayerGradient | None = None, radius: float = 2.0,
    released: bool = False, batch_size: int = 32, seed: int = 0, loop: Loop | None = None, folder: Path | None = None,
) -> Batch:  # fmt: skip
    """Genie's images (`steps`), a student made of them (`unit_steps` a unit), then `sharpening` steps against it.

    pixel_values float [images, C, S, S] on the host, no labels. `config` is that of the student to come. Raises
    ValueError as `genie_images`, `zsaq.reconstruct` and `sharpen` do.
    """
    loop = loop or Loop()
    teacher = classifier(teacher).to(loop.accelerator.device)
    made = sources(images, group, frame, seed)
    first = train(made, teacher, steps, seed)
    student = genie_m(
        teacher, config, first, steps=unit_steps, batch_size=batch_size, seed=seed, loop=loop, stage="warm"
    )
    return sharpen(
        made,
        teacher,
        student,
        steps=sharpening,
        layer=layer,
        radius=radius,
        released=released,
        seed=seed,
        folder=folder,
    )


def sadag(
    teacher: nn.Module, config: QuantConfig, frame: Frame, *, images: int = 1024, group: int = 128, steps: int = 4000,
    warm_steps: int = 4000, sharpening: int = 500, unit_steps: int = 20_000, layer: LayerGradient | None = None,
    radius: float = 2.0, released: bool = False, batch_size: int = 32, seed: int = 0, loop: Loop | None = None,
    folder: Path | None = None,
) -> nn.Module:  # fmt: skip
    """A fresh student of `teacher` by Genie-M on `sadag_images`. Defaults are the paper's, the direction apart.

    `warm_steps`: of the first student, a unit; `unit_steps`: of the last. Raises ValueError as `sadag_images` does.
    """
    loop = loop or Loop()
    teacher = classifier(teacher).to(loop.accelerator.device)
    batch = sadag_images(
        teacher, config, frame, images=images, group=group, steps=steps, unit_steps=warm_steps, sharpening=sharpening,
        layer=layer, radius=radius, released=released, batch_size=batch_size, seed=seed, loop=loop, folder=folder,
    )  # fmt: skip
    return genie_m(teacher, config, batch, steps=unit_steps, batch_size=batch_size, seed=seed, loop=loop)
