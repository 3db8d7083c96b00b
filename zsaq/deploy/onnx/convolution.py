"""Packed convolutions and rounding ReLUs in the trace, and what the graph makes of them (see lowering.py)."""

from typing import Final, final

import torch
from torch import Tensor, nn

from zsaq.deploy.integers import Integers
from zsaq.deploy.onnx.operators import OnnxLayer, become
from zsaq.deploy.onnx.rounding import StaticRounding, emit
from zsaq.quant.attention import Rounded
from zsaq.quant.layers import QuantActivation, QuantReLU6
from zsaq.quant.packed import PackedConv2d

DOMAIN: Final = "zsaq"


@final
class OnnxActivation(nn.Module):
    """A ReLU or ReLU6 that rounds what it puts out, or a rounding alone."""

    rounding: StaticRounding

    def forward(self, input: Tensor) -> Tensor:
        return self.rounding(input)


@final
class OnnxConv2d(OnnxLayer, nn.Conv2d):  # type: ignore[misc]
    """x [b, in, h, w] to [b, out, h', w'], as one node that the lowering replaces."""

    rounding: StaticRounding | None
    offset: Tensor

    def forward(self, input: Tensor) -> Tensor:
        x = input if self.rounding is None else self.rounding(input)
        size = [int(n) for n in input.shape[2:]]
        kernel, stride, gap = (list(map(int, v)) for v in (self.kernel_size, self.stride, self.dilation))
        left, right, top, bottom = self._reversed_padding_repeated_twice  # torch's own, also of "same" and "valid"
        out = [
            (n + p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(size, kernel, stride, (top + bottom, left + right), gap, strict=True)
        ]
        operands = (x, self.stored, self.table_, self.weight_scale, self.weight_zero, self.offset)
        return emit(
            f"{DOMAIN}::Conv", operands, torch.float32, (input.shape[0], self.out_channels, *out), kernel_shape=kernel,
            strides=stride, pads=[top, left, bottom, right], dilations=gap, group=self.groups, size=size,
            channels=self.in_channels,
        )  # fmt: skip


def to_convolution(layer: PackedConv2d) -> None:
    """Give a packed convolution its class for the trace, in place. Raises ValueError for a rule that no kernel has."""
    if layer.padding_mode != "zeros":
        raise ValueError(f"convolutions are padded with zeros in ONNX; this one with {layer.padding_mode}")
    rounding = None if layer.input_quantizer is None else StaticRounding(layer.input_quantizer)
    integers = Integers.of(layer)
    zero = torch.zeros(1, 1, dtype=torch.uint8) if integers.zero is None else integers.zero
    offset = torch.zeros(layer.shape[0]) if layer.bias is None else layer.bias.detach().clone()
    become(layer, OnnxConv2d, integers).operands(
        integers.table(torch.int8 if integers.zero is None else torch.uint8),
        weight_scale=integers.scale, weight_zero=zero, offset=offset,
    )  # fmt: skip
    assert isinstance(layer, OnnxConv2d)
    layer.rounding = rounding


def to_activation(module: QuantActivation) -> None:
    """The same for an activation, and for what an attention rounds, whose values have no bounds."""
    least, most = (-torch.inf if isinstance(module, Rounded) else 0.0), torch.inf
    most = 6.0 if isinstance(module, QuantReLU6) else most
    rounding = StaticRounding(module.output_quantizer, least, most)
    module.__class__ = OnnxActivation  # type: ignore[assignment]
    module.rounding = rounding
