"""Packed convolutions and rounding ReLUs in the trace, and what the graph makes of them (see lowering.py)."""

from typing import Final, final

import torch
from torch import Tensor, nn

from zsaq.deploy.integers import Integers
from zsaq.deploy.onnx.operators import OnnxLayer, become, check_inputs, emit, static_range
from zsaq.quant.layers import QuantActivation, QuantReLU6
from zsaq.quant.packed import PackedConv2d
from zsaq.quant.quantizer import Quantizer

DOMAIN: Final = "zsaq"


@final
class Rounding(nn.Module):
    """A static quantizer as QuantizeLinear and DequantizeLinear; codes are uint8, those of signed grids plus 128.

    `least` and `most` bound the values before rounding, which is monotonic, so the bounds are taken on codes.
    """

    scale: Tensor
    zero: Tensor
    none: Tensor
    one: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, quantizer: Quantizer, least: float = -torch.inf, most: float = torch.inf) -> None:
        super().__init__()
        grid = quantizer.grid
        check_inputs(grid)
        assert quantizer.ranges.static
        scale, zero = static_range(quantizer)
        start = 128 if grid.symmetric else 0
        middle = int(zero) - start
        ends = (torch.tensor(bound) / scale + middle for bound in (least, most))
        low, high = (int(end.round().clamp(grid.low, grid.high)) + start for end in ends)
        self.whole, self.shifted = (low, high) == (0, 255), middle != 0
        for name, value in {"none": 0, "low": low, "high": high}.items():
            self.register_buffer(name, torch.tensor(value, dtype=torch.uint8), persistent=False)
        for name, value in {"scale": scale, "zero": zero, "one": torch.ones(())}.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        # The student adds its zero before it rounds; where it has one, so does the graph.
        operands = (
            (x / self.scale + self.zero.float(), self.one, self.none) if self.shifted else (x, self.scale, self.zero)
        )
        codes = emit("QuantizeLinear", operands, torch.uint8, x.shape)
        if not self.whole:
            codes = emit("Clip", (codes, self.low, self.high), torch.uint8, x.shape)
        return emit("DequantizeLinear", (codes, self.scale, self.zero), torch.float32, x.shape)


@final
class OnnxActivation(nn.Module):
    """A ReLU or ReLU6 that rounds what it puts out."""

    rounding: Rounding

    def forward(self, input: Tensor) -> Tensor:
        return self.rounding(input)


@final
class OnnxConv2d(OnnxLayer, nn.Conv2d):  # type: ignore[misc]
    """x [b, in, h, w] to [b, out, h', w'], as one node that the lowering replaces."""

    rounding: Rounding | None
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
    rounding = None if layer.input_quantizer is None else Rounding(layer.input_quantizer)
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
    """The same for an activation."""
    most = 6.0 if isinstance(module, QuantReLU6) else torch.inf
    rounding = Rounding(module.output_quantizer, 0.0, most)
    module.__class__ = OnnxActivation  # type: ignore[assignment]
    module.rounding = rounding
