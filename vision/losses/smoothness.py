"""What is asked of images themselves, without a model: their statistics, size, smoothness, texture."""

from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from zsaq.train.objectives import Objective
from zsaq.train.pair import Pair


@final
class ImageStats(Objective):
    """Every channel of every image should have mean 0 and deviation 1, as normalised photos have over the data set.

    Squared gaps of the mean and the unbiased deviation, sum over channels, mean over images: ZeroQ's and Genie's term
    for the input (arXiv 2001.00281, 2212.04780). Raises ValueError for images of one pixel, which have no deviation.
    """

    def __call__(self, pair: Pair) -> Tensor:
        pixels = pair.batch["pixel_values"]
        if pixels[0, 0].numel() < 2:
            raise ValueError("images are of 1 pixel, which has no deviation to match: give an ImageSpec of larger size")
        variance, mean = torch.var_mean(pixels.float(), (2, 3))
        return (mean.square() + ((variance + 1e-6).sqrt() - 1).square()).sum(1).mean()


@final
class TotalVariation(Objective):
    """Sum over four directions (right, down, both diagonals) of the 2-norm of neighbours' differences, over the batch.

    DeepInversion's smoothness (Yin et al. 2020, arXiv 1912.08795), which DSG uses too.
    """

    def __call__(self, pair: Pair) -> Tensor:
        x = pair.batch["pixel_values"].float()
        differences = (
            x[..., :, 1:] - x[..., :, :-1],
            x[..., 1:, :] - x[..., :-1, :],
            x[..., 1:, 1:] - x[..., :-1, :-1],
            x[..., 1:, :-1] - x[..., :-1, 1:],
        )
        return torch.stack([d.norm() for d in differences]).sum()


@final
class ImageNorm(Objective):
    """Mean 2-norm of the images."""

    def __call__(self, pair: Pair) -> Tensor:
        return pair.batch["pixel_values"].float().flatten(1).norm(dim=1).mean()


@final
class TextureEnergy(Objective):
    """No single texture should fill an image. Experimental: our reading of TexQ (Chen et al. 2023, NeurIPS).

    The 16 outer products of Laws' kernels (level, edge, spot, ripple; Laws 1980) are applied to the image less its 15 x
    15 local mean; mean absolute answers, those of mirrored kernels averaged, without level-level: 9 energies, and their
    shares for each image. Sum over textures of max(share - ceiling, 0), mean over images. Raises ValueError for
    images below 8 x 8 pixels, which the mean's reflected border takes.
    """

    kernels = ((1.0, 4.0, 6.0, 4.0, 1.0), (-1.0, -2.0, 0.0, 2.0, 1.0), (-1.0, 0.0, 2.0, 0.0, -1.0),
               (1.0, -4.0, 6.0, -4.0, 1.0))  # fmt: skip

    def __init__(self, ceiling: float = 0.3) -> None:
        if not 0 < ceiling <= 1:
            raise ValueError(f"ceiling is {ceiling}; give a share, above 0 and at most 1")
        self.ceiling = ceiling

    def __call__(self, pair: Pair) -> Tensor:
        return (self.shares(pair.batch["pixel_values"]) - self.ceiling).relu().sum(1).mean()

    def shares(self, pixels: Tensor) -> Tensor:
        """Shares of the 9 textures, [B, 9], of float pixels [B, 3, H, W]."""
        check_texture(min(pixels.shape[2:]))
        gray = pixels.float().mean(1, keepdim=True)
        gray = gray - F.avg_pool2d(F.pad(gray, (7, 7, 7, 7), mode="reflect"), 15, 1)
        rows = torch.tensor(self.kernels, device=pixels.device)
        masks = torch.einsum("ai,bj->abij", rows, rows).view(16, 1, 5, 5)
        energy = F.conv2d(gray, masks).abs().mean((2, 3)).view(-1, 4, 4)
        energy = (energy + energy.transpose(1, 2)) / 2
        first, second = torch.triu_indices(4, 4, device=pixels.device)[:, 1:]
        energy = energy[:, first, second]
        return energy / energy.sum(1, keepdim=True).clamp_min(1e-12)


def check_texture(side: int) -> None:
    """Raises ValueError for images of a side, in pixels, on which there is no texture to measure."""
    if side < 8:
        raise ValueError(f"texture needs at least 8 pixels a side, here are {side}: give larger images, or texture=0")
