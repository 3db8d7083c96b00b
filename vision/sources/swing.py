"""Genie's source of images: one latent for each, a generator of their own, and a teacher that swings (2212.04780)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zsaq.train.pair import Batch
from zsaq.train.randomness import generator
from zsaq.train.synthesis import Source
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.sources.generators import quarter, seeded


@final
class Latents(Source):
    """`n` latents [n, width] ~ N(0, I), trained together with a fresh generator; every call gives their `n` images.

    Jeon et al. 2023, Genie, arXiv 2212.04780, sec. 3.1. No labels. The latents are `latents`, the generator `decoder`,
    for optimizers of their own. Many images are made in groups, each with a source and seed of its own.
    """

    def __init__(self, n: int, spec: ImageSpec, width: int = 256, seed: int = 0) -> None:
        super().__init__()
        if n < 2 or width < 1:
            raise ValueError(
                f"n is {n}, width {width}; give at least 2 images (norms work on them) and 1 latent number"
            )
        side = quarter(spec)
        with seeded(seed):
            self.latents = nn.Parameter(torch.randn(n, width))
            self.decoder = nn.Sequential(
                nn.Linear(width, 128 * side**2),
                nn.Unflatten(1, (128, side, side)),
                nn.BatchNorm2d(128),
                nn.Upsample(scale_factor=2),
                nn.Conv2d(128, 64, 3, padding=1),
                nn.BatchNorm2d(64),
                nn.LeakyReLU(0.2),
                nn.Upsample(scale_factor=2),
                nn.Conv2d(64, spec.channels, 3, padding=1),
                nn.Tanh(),
                nn.BatchNorm2d(spec.channels, affine=False),
            )

    def forward(self) -> Batch:
        return {"pixel_values": self.decoder(self.latents)}


@contextmanager
def swing(teacher: nn.Module, seed: int = 0) -> Iterator[None]:
    """Inside, every strided Conv2d sees its input shifted by up to one pixel, anew at each call, all images alike.

    Strided convolutions skip positions, so without it images are only asked of every second pixel (Genie, arXiv
    2212.04780, sec. 3.2). The input is padded by reflection by 1 and cut back at a random place; a map one pixel wide
    is left as it is.
    """
    rng = generator(seed)

    def shift(module: nn.Module, args: tuple[Tensor, ...]) -> Tensor | None:
        height, width = args[0].shape[-2:]
        if min(height, width) < 2:
            return None
        top, left = torch.randint(3, (2,), generator=rng).tolist()
        return F.pad(args[0], (1, 1, 1, 1), mode="reflect")[..., top : top + height, left : left + width]

    strided = [m for m in teacher.modules() if isinstance(m, nn.Conv2d) and max(m.stride) > 1]
    handles = [conv.register_forward_pre_hook(shift) for conv in strided]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
