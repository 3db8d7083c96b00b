"""Packed layers whose forward pass writes standard ONNX operators into a trace, in the form whose products OpenVINO
computes in integers: inputs are rounded in one static range of 8 bits, weights are int8 constants times a scale a row.

Outside a trace these layers compute nothing of use.
"""

from typing import Final, final

import torch
from torch import Tensor, nn

from zsaq.deploy.integers import Integers
from zsaq.deploy.onnx.rounding import emit
from zsaq.quant.config import Grid
from zsaq.quant.kinds import factor_of
from zsaq.quant.packed import PackedConv1D, PackedEmbedding, PackedLinear
from zsaq.quant.quantizer import Quantizer

FLOAT: Final = 1  # ONNX's number of the type
REMEDY: Final = "quantize with static inputs and a scale a row, as w2a8s says, or export --to onnx"


class TraceLayer(nn.Module):
    """What the layers in a trace share. Never constructed: `to_operators` gives a packed layer its class."""

    values: Tensor
    row_scale: Tensor

    @property
    def weight(self) -> Tensor:
        """For models that ask for its dtype."""
        return torch.empty(0)

    def hold(self, **buffers: Tensor) -> None:
        for name, value in buffers.items():
            self.register_buffer(name, value.contiguous(), persistent=False)


@final
class StaticLinear(TraceLayer):
    """x [..., in] to [..., out]: rounded inputs times weights [in, out], as what their codes stand for.

    Fewer than 8 bits are bounded before the rounding, which is monotonic: OpenVINO has 256 codes there.
    """

    step: Tensor
    zero: Tensor
    least: Tensor
    most: Tensor
    none: Tensor
    bias: Tensor | None
    whole: bool

    def forward(self, input: Tensor) -> Tensor:
        rows, columns = self.values.shape
        x = input if self.whole else emit("Clip", (input, self.least, self.most), torch.float32, input.shape)
        codes = emit("QuantizeLinear", (x, self.step, self.zero), torch.int8, input.shape)
        x = emit("DequantizeLinear", (codes, self.step, self.zero), torch.float32, input.shape)
        operands = (self.values, self.row_scale, self.none)
        weight = emit("DequantizeLinear", operands, torch.float32, (rows, columns), axis=0)
        weight = emit("Transpose", (weight,), torch.float32, (columns, rows), perm=[1, 0])
        y = emit("MatMul", (x, weight), torch.float32, (*input.shape[:-1], rows))
        return y if self.bias is None else y + self.bias


@final
class StaticTable(TraceLayer):
    """Rows of a token table, times their scales, which hold its factor."""

    def forward(self, input: Tensor) -> Tensor:
        shape = (*input.shape, self.values.shape[1])
        found = emit("Gather", (self.values, input), torch.int8, shape, axis=0)
        found = emit("Cast", (found,), torch.float32, shape, to=FLOAT)
        return found * emit("Gather", (self.row_scale, input), torch.float32, (*input.shape, 1), axis=0)


@torch.no_grad()
def to_operators(layer: nn.Module) -> None:
    """Give a packed layer its class for the trace, in place. Raises ValueError for what OpenVINO has no form for."""
    if not isinstance(layer, PackedLinear | PackedConv1D | PackedEmbedding):
        raise ValueError(f"{type(layer).__name__} is not written for OpenVINO: export --to onnx")
    quantizer, table = layer.input_quantizer, isinstance(layer, PackedEmbedding)
    if not table:
        check_inputs(quantizer)
    integers = Integers.of(layer)
    if integers.zero is not None:
        raise ValueError(f"asymmetric weights have no product of integers in OpenVINO: {REMEDY}")
    if integers.groups() > 1:
        raise ValueError(f"groups of weights have no product of integers in OpenVINO: {REMEDY}")
    columns, factor = layer.shape[1], factor_of(layer) if isinstance(layer, PackedEmbedding) else 1.0
    values = integers.table(torch.int8)[integers.stored.long()].flatten(1)[:, :columns]
    scale = integers.scale.expand(len(values), 1)
    layer.__class__ = StaticTable if table else StaticLinear  # type: ignore[assignment]
    if isinstance(layer, StaticTable):
        layer.hold(values=values, row_scale=scale * factor)
    elif isinstance(layer, StaticLinear):
        assert quantizer is not None
        step = quantizer.ranges(torch.empty(0), quantizer.grid)[0].flatten()[0]
        layer.hold(
            values=values, row_scale=scale[:, 0], step=step.clone(), zero=torch.zeros((), dtype=torch.int8),
            least=step * quantizer.grid.low, most=step * quantizer.grid.high,
            none=torch.zeros(len(values), dtype=torch.int8),
        )  # fmt: skip
        layer.whole = quantizer.grid.bits == 8


def check_inputs(quantizer: Quantizer | None) -> None:
    """Raises ValueError for inputs that OpenVINO does not round, or not as the student does."""
    grid: Grid | None = None if quantizer is None else quantizer.grid
    if grid is None:
        raise ValueError(f"inputs in floats have no product of integers in OpenVINO: {REMEDY}")
    if grid.per != "tensor":
        kind = "token" if grid.per == "token" else f"block of {grid.per}"
        raise ValueError(
            f"a scale for each {kind} has no form in OpenVINO, which would leave such inputs in floats: {REMEDY}"
        )
    if not grid.symmetric or not grid.zero.is_integer():
        raise ValueError(f"{grid} for inputs is not written for OpenVINO, which takes symmetric integers: {REMEDY}")
