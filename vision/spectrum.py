"""Images in the frequency domain."""

import math

import torch
from torch import Tensor


def low_pass(pixels: Tensor, cutoff: float) -> Tensor:
    """`pixels` [..., H, W] under a Gaussian of the frequency, gain exp(-f^2 / (2 cutoff^2)): same shape and dtype.

    f and `cutoff` are in cycles per pixel, so that one number serves every size: D0 bins of an image of N pixels are
    D0 / N (8 of 32: 0.25; 80 of 224: 0.36). The mean of an image is kept. Kim et al. 2025 (SynQ), eq. 4.
    Raises ValueError for a cutoff outside (0, 1]: beyond 1 nothing is filtered.
    """
    if not 0 < cutoff <= 1:
        raise ValueError(
            f"cutoff is {cutoff!r}; give cycles per pixel, above 0 and at most 1: D0 bins of N pixels are D0 / N"
        )
    height, width = pixels.shape[-2:]
    vertical = torch.fft.fftfreq(height, device=pixels.device)
    horizontal = torch.fft.rfftfreq(width, device=pixels.device)
    gain = torch.exp((vertical[:, None].square() + horizontal.square()) / (-2 * math.pow(cutoff, 2)))
    return torch.fft.irfft2(torch.fft.rfft2(pixels.float()) * gain, s=(height, width)).to(pixels.dtype)
