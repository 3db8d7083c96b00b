"""Formats of scales: how a file holds them. Whatever is computed with is rounded to its format before errors are
compared and before anything trains, so that what is trained is what is shipped."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final, final

import torch
from torch import Tensor


class Scales(ABC):
    """A format of scales. What it gives is never 0 nor infinite: scales beyond its ends become its ends."""

    dtype: torch.dtype  # of what a file holds
    name: str  # in words
    factors: Sequence[float] | None = None  # by which the first scale is multiplied in a search, where they are few
    united = False  # whether they stand times one float32 of the whole tensor
    signed = False  # whether they may be negative

    @abstractmethod
    def encode(self, scale: Tensor, unit: Tensor | None) -> Tensor:
        """What a file holds of each."""

    @abstractmethod
    def decode(self, stored: Tensor, unit: Tensor | None) -> Tensor:
        """The float32 that it stands for."""

    def held(self, scale: Tensor, unit: Tensor | None) -> Tensor:
        """The nearest scales that the format has, in the dtype of those that are given, float32 at least."""
        return self.decode(self.encode(scale, unit), unit).to(scale.dtype)

    def unit(self, scale: Tensor) -> Tensor | None:
        """The float [1] of a tensor with these scales."""
        return None

    def first(self, most: Tensor, amplitude: float) -> Tensor:
        """The scale of a group whose largest magnitude is `most`, on a grid whose amplitude is this."""
        return most / amplitude


@final
class Float32(Scales):
    dtype, name, signed = torch.float32, "", True

    def encode(self, scale: Tensor, unit: Tensor | None) -> Tensor:
        return scale.float()

    def decode(self, stored: Tensor, unit: Tensor | None) -> Tensor:
        return stored

    def held(self, scale: Tensor, unit: Tensor | None) -> Tensor:
        return scale


@final
class Float16(Scales):
    dtype, name, signed = torch.float16, "float16", True

    def encode(self, scale: Tensor, unit: Tensor | None) -> Tensor:
        return scale.abs().clamp(2.0**-24, torch.finfo(torch.float16).max).copysign(scale).half()

    def decode(self, stored: Tensor, unit: Tensor | None) -> Tensor:
        return stored.float()


@final
class E8M0(Scales):
    """Powers of two by their exponent plus 127, the scales of OCP's Microscaling Formats 1.0.

    Their rule takes the exponent of the largest magnitude less that of the largest value, and a search compares it with
    its neighbours; what is trained is rounded to the nearest power by its logarithm.
    """

    dtype, name = torch.uint8, "powers of two"
    factors = (1.0, 2.0, 0.5, 0.25)

    def encode(self, scale: Tensor, unit: Tensor | None) -> Tensor:
        return exponent(scale.float() * math.sqrt(2)).clamp_(1, 254).to(torch.uint8)

    def decode(self, stored: Tensor, unit: Tensor | None) -> Tensor:
        return (stored.int() << 23).view(torch.float32)

    def first(self, most: Tensor, amplitude: float) -> Tensor:
        power = exponent(most.float()) - math.floor(math.log2(amplitude))
        return self.decode(power.clamp_(1, 254), None).to(most.dtype)


@final
class E4M3(Scales):
    """8-bit floats times one float32, with which the largest scale of a tensor is the largest of them (NVFP4)."""

    dtype, name = torch.uint8, "E4M3"
    united = True

    def encode(self, scale: Tensor, unit: Tensor | None) -> Tensor:
        assert unit is not None
        return (scale.float() / unit).clamp(2.0**-9, 448).to(torch.float8_e4m3fn).view(torch.uint8)

    def decode(self, stored: Tensor, unit: Tensor | None) -> Tensor:
        assert unit is not None
        return stored.contiguous().view(torch.float8_e4m3fn).float() * unit

    def unit(self, scale: Tensor) -> Tensor:
        return scale.max().float().view(1) / 448


FORMATS: Final[dict[str, Scales]] = {"float32": Float32(), "float16": Float16(), "e8m0": E8M0(), "e4m3": E4M3()}
"""By the name that `Grid.scales` has for them."""


def exponent(positive: Tensor) -> Tensor:
    """The biased exponent of a float32, int32: 127 for 1."""
    return positive.contiguous().view(torch.int32) >> 23


class Straight(torch.autograd.Function):
    """Trained scales as their format holds them; gradients pass as they are."""

    @staticmethod
    def forward(ctx, scale: Tensor, unit: Tensor | None, form: Scales) -> Tensor:
        return form.held(scale, unit)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        return grad, None, None
