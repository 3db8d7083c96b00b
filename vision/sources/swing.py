"""Genie's source of images: one latent for each, a generator of their own, and a teacher that swings (2212.04780)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from zsaq.train.pair import Batch, first_input
from zsaq.train.randomness import generator
from zsaq.train.synthesis import Source
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.sources.enlarging import EnlargingConv2d
from zsaq.vision.sources.generators import first_side, seeded

Pad = Callable[[Tensor], Tensor]


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
        side = first_side(spec, 2)
        with seeded(seed):
            self.latents = nn.Parameter(torch.randn(n, width))
            self.decoder = nn.Sequential(
                nn.Linear(width, 128 * side**2),
                nn.Unflatten(1, (128, side, side)),
                nn.BatchNorm2d(128),
                EnlargingConv2d(128, 64),
                nn.BatchNorm2d(64),
                nn.LeakyReLU(0.2),
                EnlargingConv2d(64, spec.channels),
                nn.Tanh(),
                nn.BatchNorm2d(spec.channels, affine=False),
            )

    def forward(self) -> Batch:
        return {"pixel_values": self.decoder(self.latents)}


@contextmanager
def swing(teacher: nn.Module, seed: int = 0) -> Iterator[None]:
    """Inside, every strided Conv2d sees its input shifted by up to one pixel, anew at each call, all images alike.

    Strided convolutions skip positions, so without it images are only asked of every second pixel (Genie, arXiv
    2212.04780, sec. 3.2). The input is extended by reflection by 1 and cut back at a random place; a map one pixel wide
    is left as it is. Where a padding stands before the convolution, as a module or a call, what it is given is shifted,
    so that the border stays where the convolution meets it.
    """
    rng, paddings = generator(seed), Paddings()

    def shift(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> Any:
        bare, pad = paddings.undone(first_input(args, kwargs))
        height, width = bare.shape[-2:]
        if min(height, width) < 2:
            return None
        top, left = torch.randint(3, (2,), generator=rng).tolist()
        shifted = pad(F.pad(bare, (1, 1, 1, 1), mode="reflect")[..., top : top + height, left : left + width])
        return ((shifted, *args[1:]), kwargs) if args else ((), {**kwargs, next(iter(kwargs)): shifted})

    strided = [m for m in teacher.modules() if isinstance(m, nn.Conv2d) and max(m.stride) > 1]
    handles = [conv.register_forward_pre_hook(shift, with_kwargs=True) for conv in strided]
    try:
        with paddings:
            yield
    finally:
        for handle in handles:
            handle.remove()


@final
class Paddings(TorchFunctionMode):
    """A context that remembers of every padded tensor, as long as it lives, what was padded and how."""

    def __init__(self) -> None:
        super().__init__()
        self.made = WeakIdKeyDictionary()

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        if func is F.pad:
            self.made[answer] = parted(*args, **(kwargs or {}))
        return answer

    def undone(self, padded: Tensor) -> tuple[Tensor, Pad]:
        """What was padded, and how; a tensor that was not is itself."""
        if padded not in self.made:
            return padded, lambda bare: bare
        bare, pad = self.made[padded]
        bare, before = self.undone(bare)
        return bare, lambda shifted: pad(before(shifted))


def parted(input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> tuple[Tensor, Pad]:
    """The arguments of `F.pad`, into the tensor and what is done to it."""
    return input, partial(F.pad, pad=pad, mode=mode, value=value)
