"""Noise that hangs together as photographs do, made from what is known of all of them: no teacher, no step, no data."""

import torch
from torch import Tensor
from torch.nn import functional as F

from zsaq.train.amounts import check_counts
from zsaq.train.pair import Batch
from zsaq.train.randomness import generator
from zsaq.vision.image_spec import ImageSpec

SLOPE = 1.2  # the amplitude of photographs falls with frequency to the power of minus this (Tolhurst et al. 1992)
OPPONENT = ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (1.0, -2.0, 1.0))  # brightness, red against blue, both against green
SHARES = (0.92, 0.07, 0.01)  # of the variance, that these have


def opponents(channels: int) -> Tensor:
    """What turns opponent colours into the channels of pixels, float32 [channels, channels]; but for 3 channels, which
    are red, green and blue or the other way round, nothing is known and this is the identity.

    Columns are orthogonal, with squares that sum to the number of channels. That brightness, blue and yellow, red and
    green are apart, in this order of variance, is known of photographs (Ruderman et al. 1998). The SHARES are ours, set
    with the colours' correlations in 64 real pictures in sight: no clean zero-shot choice (recipes/LOG.md).
    """
    if channels != 3:
        return torch.eye(channels, dtype=torch.float32)
    axes = F.normalize(torch.tensor(OPPONENT, dtype=torch.float32), dim=1)
    return (axes * (3 * torch.tensor(SHARES, dtype=torch.float32)).sqrt()[:, None]).T.contiguous()


def pink_images(spec: ImageSpec, *, images: int, seed: int = 0) -> Batch:
    """`images` images of Gaussian noise, pixel_values float32 [images, C, S, S]: amplitudes fall with frequency to the
    power of -SLOPE, that of an image's mean is the lowest frequency's; channels of 3 mix `opponents`; the variance of a
    pixel is 1 on average over channels. Raises ValueError for no images, or no number
    of them."""
    check_counts(images=images)
    along = torch.fft.fftfreq(spec.size, 1 / spec.size, dtype=torch.float32)
    amplitude = (along[:, None].square() + along.square()).sqrt().clamp_min(1) ** -SLOPE
    amplitude /= amplitude.square().mean().sqrt()
    shape = (images, spec.channels, spec.size, spec.size)
    white = torch.randn(shape, generator=generator(seed), dtype=torch.float32)
    smooth = torch.fft.ifft2(torch.fft.fft2(white) * amplitude).real
    return {"pixel_values": torch.einsum("kc,nchw->nkhw", opponents(spec.channels), smooth)}
