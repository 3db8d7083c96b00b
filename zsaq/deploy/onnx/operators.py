"""Packed layers whose forward pass writes ONNX Runtime's operators into the graph that torch.onnx.export traces.

Each computes the rule that its layer was trained on, in integers:

- `int8`: inputs of one scale a token (dynamic) or a tensor (static), up to 8 bits, times weights of any bits:
  MatMulInteger's kernel. A weight with groups is a sum over them.
- `blocks`: inputs of one scale a block of 16 to 256 entries (dynamic, 8 bits), or floats: MatMulNBits at accuracy
  level 4, which rounds inputs by itself, or 0.
- floats, for weights that MatMulNBits does not take.

Outside a trace these layers compute nothing of use.
"""

from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.onnx.ops import symbolic

from zsaq.deploy.integers import Integers
from zsaq.deploy.onnx.blocks import block_of, fits_kernels
from zsaq.quant.config import Grid
from zsaq.quant.kinds import factor_of
from zsaq.quant.packed import PackedConv1D, PackedEmbedding, PackedLayer, PackedLinear
from zsaq.quant.quantizer import Quantizer
from zsaq.quant.ranges import floored

MICROSOFT: Final = "com.microsoft::"
INT8: Final = 3  # ONNX's number of the type
INT32: Final = 6


def emit(kind: str, inputs: Any, dtype: torch.dtype, shape: Any, **attributes: Any) -> Tensor:
    """One operator in the graph."""
    return symbolic(kind, inputs, attributes, dtype=dtype, shape=shape)


class OnnxLayer(nn.Module):
    """What the layers in a trace share. Never constructed: `to_operators` gives a packed layer its class."""

    stored: Tensor
    table_: Tensor
    weight_scale: Tensor
    weight_zero: Tensor
    one: Tensor
    middle: Tensor
    fixed: Tensor
    bias: Tensor | None
    shape: tuple[int, int]
    input_quantizer: Quantizer | None
    integers: Integers

    @property
    def weight(self) -> Tensor:
        """For models that ask for its dtype."""
        return torch.empty(0)

    def operands(self, table: Tensor, **buffers: Tensor) -> None:
        for name, value in {"stored": self.integers.stored, "table_": table, **buffers}.items():
            self.register_buffer(name, value.contiguous(), persistent=False)

    def widened(self, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        """The stored bytes through the table: [out, bytes] to [out, bytes, n], seen as `shape`. Folded when opened."""
        index = emit("Cast", (self.stored,), torch.int32, self.stored.shape, to=INT32)
        wide = emit("Gather", (self.table_, index), dtype, (*self.stored.shape, self.table_.shape[1]))
        return emit("Reshape", (wide, torch.tensor(shape)), dtype, shape)


def round_inputs(x: Tensor, quantizer: Quantizer, one: Tensor, middle: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor]:
    """Codes uint8 in x's shape, and their float scale [..., 1] or []; `middle` is the code of zero, `fixed` the
    scale of a static range.

    The arithmetic of `zsaq.quantizer`: divide by the scale, add an integer zero, round half to even, clamp.
    """
    grid = quantizer.grid
    if quantizer.ranges.static:
        v, scale = x / fixed, fixed
        v = v if grid.symmetric else v + middle.float()
        v = v if grid.bits == 8 else v.clamp(grid.low, grid.high)
    else:
        scale = floored(x.abs().amax(-1, keepdim=True) / grid.amplitude)
        v = x / scale
        v = v if grid.amplitude <= grid.high else v.clamp(grid.low, grid.high)
    start = middle if grid.symmetric else torch.zeros_like(middle)
    return emit("QuantizeLinear", (v, one, start), torch.uint8, x.shape), scale


@final
class Int8Linear(OnnxLayer):
    """x [..., in] to [..., out]: codes times codes in 32-bit integers, then both scales and the bias."""

    def forward(self, input: Tensor) -> Tensor:
        assert self.input_quantizer is not None
        codes, scale = round_inputs(input, self.input_quantizer, self.one, self.middle, self.fixed)
        rows, columns = self.shape
        kind = torch.int8 if self.integers.zero is None else torch.uint8
        weight = self.widened(kind, (rows, self.stored.shape[1] * self.table_.shape[1]))
        weight = weight[:, :columns] if weight.shape[1] > columns else weight
        groups, shape = self.integers.groups(), (*input.shape[:-1], rows)
        if groups == 1:
            weight = emit("Transpose", (weight,), kind, (columns, rows), perm=[1, 0])
            operands = (codes, weight, self.one, self.weight_scale, self.middle, self.weight_zero)
            y = emit(f"{MICROSOFT}MatMulIntegerToFloat", operands, torch.float32, shape)
        else:
            size = columns // groups
            weight = weight.reshape(rows, groups, size).permute(1, 2, 0)
            parts = codes.reshape(-1, groups, size).transpose(0, 1)
            operands = (parts, weight, self.middle, self.weight_zero)
            sums = emit("MatMulInteger", operands, torch.int32, (groups, parts.shape[1], rows))
            y = (sums.float() * self.weight_scale).sum(0).reshape(shape)
        y = y * scale
        return y if self.bias is None else y + self.bias


@final
class BlocksLinear(OnnxLayer):
    """x [..., in] to [..., out] by MatMulNBits; weights of one scale a row repeat it for every block."""

    bits: int
    block: int

    def forward(self, input: Tensor) -> Tensor:
        (rows, columns), blocks = self.shape, self.shape[1] // self.block
        weight = self.widened(torch.uint8, (rows, blocks, self.block * self.bits // 8))
        scale = self.weight_scale.expand(rows, blocks).reshape(rows, blocks)
        inputs = (input, weight, scale) + ((None, None, self.bias) if self.bias is not None else ())
        level = 0 if self.input_quantizer is None else 4
        shape = (*input.shape[:-1], rows)
        return emit(
            f"{MICROSOFT}MatMulNBits", inputs, torch.float32, shape, K=columns, N=rows, bits=self.bits,
            block_size=self.block, accuracy_level=level,
        )  # fmt: skip


@final
class FloatLinear(OnnxLayer):
    """x [..., in] to [..., out] in floats: weights that MatMulNBits does not take, widened when the file is opened."""

    def forward(self, input: Tensor) -> Tensor:
        (rows, columns), groups = self.shape, self.integers.groups()
        weight = self.widened(self.table_.dtype, (rows, self.stored.shape[1] * self.table_.shape[1]))[:, :columns]
        weight = (weight.float().reshape(rows, groups, -1) - self.weight_zero) * self.weight_scale
        y = input @ weight.reshape(rows, columns).T
        return y if self.bias is None else y + self.bias


@final
class IntegerTable(OnnxLayer):
    """Rows of a token table, by GatherBlockQuantized, times its factor."""

    bits: int
    block: int
    factor: float

    def forward(self, input: Tensor) -> Tensor:
        (rows, columns), blocks = self.shape, self.shape[1] // self.block
        table = self.widened(torch.uint8, (rows, columns * self.bits // 8))
        scale = self.weight_scale.expand(rows, blocks).reshape(rows, blocks)
        found = emit(
            f"{MICROSOFT}GatherBlockQuantized", (table, input, scale), torch.float32, (*input.shape, columns),
            bits=self.bits, block_size=self.block, gather_axis=0, quantize_axis=1,
        )  # fmt: skip
        return found if self.factor == 1 else found * self.factor


def check_inputs(grid: Grid) -> None:
    """Raises ValueError for inputs that no kernel rounds as the student does."""
    if not grid.zero.is_integer():
        raise ValueError("inputs at half-integer levels have no kernel; give QuantConfig.input an integer Grid")
    if isinstance(grid.per, int) and (grid.bits != 8 or not grid.symmetric):
        raise ValueError(f"inputs in blocks have 8 symmetric bits in ONNX Runtime; these have {grid}")
    if grid.per == "token" and not grid.symmetric:
        raise ValueError("asymmetric inputs per token have no kernel; make them symmetric, or static (per='tensor')")


@torch.no_grad()
def to_operators(layer: PackedLayer, blocks: bool = False) -> None:
    """Give a packed layer its class for the trace, in place. Raises ValueError for a rule that no kernel has.

    `blocks`: round inputs once a block where the student rounds them once a token (see `has_blocks`).
    """
    integers, quantizer = Integers.of(layer), layer.input_quantizer
    if isinstance(layer, PackedEmbedding):
        if integers.zero is not None:
            raise ValueError("an asymmetric token table has no kernel yet; give QuantConfig.embedding a symmetric Grid")
        (bits, table), layer.factor = integers.repacked(), factor_of(layer)  # type: ignore[assignment]
        become(layer, IntegerTable, integers).operands(table, weight_scale=integers.scale)
        layer.bits, layer.block = bits, block_of(layer.shape[1], integers.groups())  # type: ignore[assignment]
        return
    if not isinstance(layer, PackedLinear | PackedConv1D):
        raise ValueError(f"{type(layer).__name__} has no operator yet")
    if quantizer is not None:
        check_inputs(quantizer.grid)
    if quantizer is None and (integers.zero is not None or not fits_kernels(layer.shape[1], integers.groups())):
        zero = torch.zeros(1, 1) if integers.zero is None else integers.zero.float()
        become(layer, FloatLinear, integers).operands(
            integers.table(torch.int8 if integers.zero is None else torch.uint8),
            weight_scale=integers.scale[..., None], weight_zero=zero[..., None],
        )  # fmt: skip
        return
    if quantizer is None or blocks or isinstance(quantizer.grid.per, int):
        if integers.zero is not None:
            raise ValueError("asymmetric weights have no kernel in blocks; give QuantConfig.weight a symmetric Grid")
        wanted = None if quantizer is None or blocks else quantizer.grid.per
        block = block_of(layer.shape[1], integers.groups(), wanted)  # type: ignore[arg-type]
        bits, table = integers.repacked()
        become(layer, BlocksLinear, integers).operands(table, weight_scale=integers.scale)
        layer.bits, layer.block = bits, block  # type: ignore[assignment]
        return
    many = integers.groups() > 1
    scale = integers.scale.expand(layer.shape[0], -1)
    scale = scale.T[:, None, :] if many else scale[:, 0]
    zero = torch.zeros((), dtype=torch.int8)
    if integers.zero is not None:
        zero = integers.zero.expand(layer.shape[0], -1)
        zero = zero.T[:, None, :] if many else zero[:, 0]
    fixed, middle = static_range(quantizer)
    become(layer, Int8Linear, integers).operands(
        integers.table(torch.int8 if integers.zero is None else torch.uint8),
        weight_scale=scale, weight_zero=zero, one=torch.ones(()), middle=middle, fixed=fixed,
    )  # fmt: skip


def static_range(quantizer: Quantizer) -> tuple[Tensor, Tensor]:
    """The scale [], 1 where it is dynamic, and the code of zero, uint8 []; signed codes are counted from -128."""
    if not quantizer.ranges.static:
        return torch.ones(()), torch.tensor(128, dtype=torch.uint8)
    scale, zero = quantizer.ranges(torch.empty(0), quantizer.grid)
    return scale.flatten()[0].clone(), torch.tensor(128 if quantizer.grid.symmetric else int(zero), dtype=torch.uint8)


def become(layer: PackedLayer, kind: type[OnnxLayer], integers: Integers) -> OnnxLayer:
    layer.__class__ = kind  # type: ignore[assignment]
    assert isinstance(layer, OnnxLayer)
    layer.integers = integers
    return layer
