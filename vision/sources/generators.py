"""GDFQ's generators: noise and a label in, an image in normalised space out; and the parts that others build on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zsaq.train.amounts import check_counts
from zsaq.train.pair import Batch
from zsaq.train.randomness import generator
from zsaq.train.synthesis import Source, process_index, seed_of
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.sources.enlarging import EnlargingConv2d

EPS = 0.8  # of the generators' norms. GDFQ meant it for the momentum; its results, and its successors', rest on it


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Modules built inside, on the host, get the weights of `seed`; the global streams are left as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)  # torch.manual_seed would seed every GPU too
        yield


def first_side(spec: ImageSpec, times: int) -> int:
    """The side of a generator's first map, which it doubles so many times. Raises ValueError where it is not whole."""
    if spec.size % 2**times:
        raise ValueError(
            f"the images are {spec.size} pixels wide, and this generator doubles its maps {times} times: give a "
            f"multiple of {2**times}, or take a method without a generator, as onepass"
        )
    return spec.size // 2**times


def check_batch(batch_size: int) -> None:
    """Raises ValueError for a batch of one, on which a generator's norms do not work, and for what is no number."""
    check_counts(batch_size=batch_size)
    if batch_size < 2:
        raise ValueError(f"batch_size is {batch_size}; a generator's norms work on a batch: give at least 2 images")


def embedded_labels(table: Tensor, labels: Tensor) -> Tensor:
    """Rows [B, d] of a table [C, d]: those of int64 labels [B], or their means under soft labels float [B, C]."""
    return labels @ table if labels.is_floating_point() else table[labels]


@final
class ConditionalNorm(nn.Module):
    """BatchNorm of [B, channels, H, W] with scale and shift by label (de Vries et al. 2017, arXiv 1707.00683).

    Labels int64 [B], or float [B, C], which mix scales and shifts.
    """

    def __init__(self, channels: int, classes: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, eps, affine=False)
        self.scale = nn.Parameter(torch.ones(classes, channels))
        self.shift = nn.Parameter(torch.zeros(classes, channels))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        scale, shift = (embedded_labels(table, labels)[:, :, None, None] for table in (self.scale, self.shift))
        return self.norm(x) * scale + shift


@final
class PlainNorm(nn.BatchNorm2d):
    """BatchNorm that every label shares."""

    def forward(self, input: Tensor, labels: Tensor) -> Tensor:
        return super().forward(input)


@final
class Decoder(nn.Module):
    """From a latent [B, width] to images [B, channels, size, size]: linear, then twice as wide two times.

    The last norm gives every batch mean 0 and variance 1, that of normalised images; always in train mode. With
    `by_label` norms are conditional (GDFQ for ImageNet), else all labels share them (GDFQ for CIFAR).
    """

    def __init__(self, spec: ImageSpec, width: int, by_label: bool) -> None:
        super().__init__()
        self.side = first_side(spec, 2)

        def norm(channels: int, eps: float) -> nn.Module:
            return ConditionalNorm(channels, spec.classes, eps) if by_label else PlainNorm(channels, eps)

        self.linear = nn.Linear(width, 128 * self.side**2)
        self.norms = nn.ModuleList([norm(128, 1e-5), norm(128, EPS), norm(64, EPS)])
        self.convs = nn.ModuleList([EnlargingConv2d(128, 128), EnlargingConv2d(128, 64)])
        self.paint = nn.Conv2d(64, spec.channels, 3, padding=1)
        self.last = nn.BatchNorm2d(spec.channels, affine=False)

    def forward(self, latent: Tensor, labels: Tensor) -> Tensor:
        x = self.norms[0](self.linear(latent).view(-1, 128, self.side, self.side), labels)
        for conv, norm in zip(self.convs, self.norms[1:], strict=True):
            x = F.leaky_relu(norm(conv(x), labels), 0.2)
        return self.last(torch.tanh(self.paint(x)))


@final
class Conditional(Source):
    """GDFQ's source (Xu et al. 2020, arXiv 2003.03603): fresh noise z ~ N(0, I) and uniform labels at every call.

    Up to 64 pixels the label's embedding times z is decoded (1.05 M parameters at 32), beyond that z by conditional
    norms (41 M at 224, nearly all in the linear layer). `batch_size` is at least 2, since norms work on the batch.
    Weights come from `seed`; several processes have the same ones and noise of their own.
    """

    def __init__(self, spec: ImageSpec, batch_size: int, *, width: int = 100, seed: int = 0) -> None:
        super().__init__()
        check_batch(batch_size)
        check_counts(width=width)
        self.spec, self.batch_size, self.width = spec, batch_size, width
        small = spec.size <= 64
        with seeded(seed):
            self.embedding = nn.Embedding(spec.classes, width) if small else None
            self.decoder = Decoder(spec, width, by_label=not small)
        self.rng = generator(seed_of(seed, process_index()))

    def forward(self) -> Batch:
        device = self.decoder.linear.weight.device
        noise = torch.randn(self.batch_size, self.width, generator=self.rng).to(device)
        labels = torch.randint(self.spec.classes, (self.batch_size,), generator=self.rng).to(device)
        latent = noise if self.embedding is None else self.embedding(labels) * noise
        return {"pixel_values": self.decoder(latent, labels), "labels": labels}
