"""Images cut together, CutMix (Yun et al. 2019, arXiv 1905.04899): inside a box an image shows another one's pixels.

Nobody labels them here; the teacher's answers do. Synthetic images are plain cases, of which it is sure; on mixtures it
is not, as on real images: KL on them orders students nearer to KL on real images (recipes/LOG.md).
"""

import torch
from torch import Tensor

from zsaq.train.amounts import check_counts
from zsaq.train.pair import Batch
from zsaq.train.randomness import generator
from zsaq.train.streams import Mapped
from zsaq.train.synthesis import process_index, seed_of
from zsaq.vision.sources.crops import boxes, views

SHARE = (0.05, 0.45)  # of the area that is the other's: ours; the paper draws it between 0 and 1


def pasted(pixels: Tensor, others: Tensor, where: Tensor) -> Tensor:
    """`pixels` with those of `others` inside each image's box: float [B, C, H, W], `where` int64 [B, 4] as `boxes`."""
    inside = torch.ones(len(pixels), 1, 1, 1, dtype=torch.bool, device=pixels.device)
    for axis in (0, 1):
        at = torch.arange(pixels.shape[2 + axis], device=pixels.device)
        start, length = where[:, axis, None], where[:, axis + 2, None]
        within = (at >= start) & (at < start + length)
        inside = inside & (within[:, None, :, None] if axis == 0 else within[:, None, None, :])
    return torch.where(inside, others, pixels)


def mixed(pixels: Tensor, rng: torch.Generator) -> Tensor:
    """Every image of float [B, C, H, W], mirrored half the time, with a box of the image before it. `rng` is a
    generator of the CPU, so that every device mixes alike. Raises ValueError for one image alone."""
    if len(pixels) < 2:
        raise ValueError(f"there is {len(pixels)} image to mix; give at least 2 images, and a batch_size of 2 or more")
    flipped = torch.rand(len(pixels), generator=rng) < 0.5
    where = boxes(len(pixels), (pixels.shape[2], pixels.shape[3]), SHARE, rng).to(pixels.device)
    pixels = torch.where(flipped.to(pixels.device)[:, None, None, None], pixels.flip(3), pixels)
    return pasted(pixels, pixels.roll(1, 0), where)


def beside(pixels: Tensor, mixes: int, rng: torch.Generator) -> Tensor:
    """Images float [B, C, H, W], then `mixes` mixtures of each: [B (1 + mixes), C, H, W]. Raises ValueError for what
    is no whole number, and as `mixed` does."""
    check_counts(0, mixes=mixes)
    return torch.cat([pixels, *(mixed(pixels, rng) for _ in range(mixes))])


def mixtures(images: Batch, batch_size: int, seed: int = 0) -> Mapped:
    """Endless mini-batches of mixtures of a fixed set, shuffled as `views` does, without labels: {"pixel_values"}.

    Raises ValueError as `views` does, and for less than two images or a batch of one, which has no other to mix with.
    """
    if min(count := len(images["pixel_values"]), batch_size) < 2:
        raise ValueError(f"images is {count}, batch_size {batch_size}; a mixture is of two: give at least 2 of each")
    rng = generator(seed_of(seed_of(seed, process_index()), 1))
    stream = views(images, batch_size, seed, crops=False)
    return Mapped(lambda batch: {"pixel_values": mixed(batch["pixel_values"], rng)}, stream)
