"""Random resized crops and flips of a whole batch at once, differentiable; batches of a fixed set, endless or once."""

import math
from collections.abc import Iterator
from typing import Self, final

import torch
from torch import Tensor
from torch.nn import functional as F

from zsaq.train.amounts import check_counts
from zsaq.train.pair import Batch
from zsaq.train.randomness import generator
from zsaq.train.synthesis import process_index, seed_of

TRIES = 10  # draws of a box before the whole image is taken, as in the usual per-image crop


def boxes(n: int, side: tuple[int, int], scale: tuple[float, float], rng: torch.Generator) -> Tensor:
    """`n` boxes (top, left, height, width) in whole pixels, int64 [n, 4], within images of `side` (height, width).

    The area is uniform in `scale` of the image's, the logarithm of width / height uniform between those of 3/4 and 4/3.
    """
    height, width = side
    area = torch.empty(n, TRIES).uniform_(*scale, generator=rng) * height * width
    aspect = torch.empty(n, TRIES).uniform_(math.log(3 / 4), math.log(4 / 3), generator=rng).exp()
    h, w = (area / aspect).sqrt().round(), (area * aspect).sqrt().round()
    fits = (h >= 1) & (w >= 1) & (h <= height) & (w <= width)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    missed = ~fits.any(1, keepdim=True)
    h = h.gather(1, first).masked_fill(missed, height)
    w = w.gather(1, first).masked_fill(missed, width)
    where = torch.rand(n, 2, generator=rng)
    top, left = (where[:, :1] * (height - h + 1)).floor(), (where[:, 1:] * (width - w + 1)).floor()
    return torch.cat([top, left, h, w], 1).long()


def crop(pixels: Tensor, boxes: Tensor, flipped: Tensor) -> Tensor:
    """Each image's box, resized bilinearly to the image's size and mirrored where `flipped` [B] bool: one grid_sample.

    `pixels` float [B, C, H, W], `boxes` int64 [B, 4]. Gradients flow to the pixels. Like cutting out first and resizing
    then: pixels outside a box are never mixed in. Those of 16 bits are resized in float32, which tells places apart.
    """
    if pixels.dtype.itemsize < 4:
        return crop(pixels.float(), boxes, flipped).to(pixels)
    grids = []
    for start, length, size in ((0, 2, pixels.shape[2]), (1, 3, pixels.shape[3])):
        first, extent = boxes[:, start, None].to(pixels), boxes[:, length, None].to(pixels)
        centre = (torch.arange(size, device=pixels.device) + 0.5) / size * extent
        centre = torch.minimum(centre.clamp_min(0.5), extent - 0.5) + first
        grids.append(2 * centre / size - 1)
    y, x = grids
    x = torch.where(flipped[:, None], x.flip(1), x)
    grid = torch.stack([x[:, None, :].expand(-1, y.shape[1], -1), y[:, :, None].expand(-1, -1, x.shape[1])], -1)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)


def random_crops(pixels: Tensor, scale: tuple[float, float], rng: torch.Generator) -> Tensor:
    """Every image of float [B, C, H, W] cropped, resized to its size and mirrored half the time, each on its own.

    `rng` is a generator of the CPU, so that every device crops alike. Raises ValueError for a scale that is no share.
    """
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"scale is {scale}; give two shares of the area, 0 < smallest <= largest <= 1")
    n, _, height, width = pixels.shape
    drawn = boxes(n, (height, width), scale, rng)
    flipped = torch.rand(n, generator=rng) < 0.5
    return crop(pixels, drawn.to(pixels.device), flipped.to(pixels.device))


def views(
    batch: Batch, batch_size: int, seed: int = 0, crops: bool = True, scale: tuple[float, float] = (0.5, 1.0)
) -> "Views":
    """Endless mini-batches of a fixed set, shuffled anew each time all have been seen; with `crops`, random ones.

    Every entry of `batch` has the samples first. With several processes each has a stream of its own. Raises ValueError
    for an empty set or a batch size below 1.
    """
    n = len(batch["pixel_values"])
    if n < 1 or batch_size < 1:
        raise ValueError(f"there are {n} images, and batch_size is {batch_size}; give at least one of each")
    return Views(batch, batch_size, generator(seed_of(seed, process_index())), scale if crops else None)


@final
class Views(Iterator[Batch]):
    """See `views`; the place of the stream is the `order` of what was not shown yet."""

    def __init__(self, batch: Batch, batch_size: int, rng: torch.Generator, scale: tuple[float, float] | None) -> None:
        self.batch, self.batch_size, self.rng, self.scale = batch, batch_size, rng, scale
        self.order = torch.empty(0, dtype=torch.long)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        while len(self.order) < self.batch_size:
            self.order = torch.cat([self.order, torch.randperm(len(self.batch["pixel_values"]), generator=self.rng)])
        index, self.order = self.order[: self.batch_size], self.order[self.batch_size :]
        part = {name: value[index.to(value.device)] for name, value in self.batch.items()}
        if self.scale is not None:
            part["pixel_values"] = random_crops(part["pixel_values"], self.scale, self.rng)
        return part

    def state_dict(self) -> dict[str, Tensor]:
        return {"order": self.order}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        self.order = state_dict["order"]


def minibatches(images: Batch, batch_size: int) -> Iterator[Batch]:
    """`images` as they are, once, `batch_size` at a time. Raises ValueError for a `batch_size` that is no count."""
    check_counts(batch_size=batch_size)
    for start in range(0, len(images["pixel_values"]), batch_size):
        yield {name: value[start : start + batch_size] for name, value in images.items()}
