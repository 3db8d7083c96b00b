"""Packed layers whose forward pass writes ONNX Runtime's operators into the graph that torch.onnx.export traces.

Each computes the rule that its layer was trained on, in integers:

- `int8`: inputs of one scale a token (dynamic) or a tensor (static), up to 8 bits, times weights of any bits:
  MatMulInteger's kernel. A weight with groups is a sum over them.
- `blocks`: inputs of one scale a block of 16 to 256 entries (dynamic, 8 bits), or floats: MatMulNBits at accuracy
  level 4, which rounds inputs by itself, or 0.
- floats, for weights that MatMulNBits does not take.

Outside a trace these layers compute nothing of use.
"""

from typing import Final, final

import torch
from torch import Tensor, nn

from zsaq.deploy.integers import Integers
from zsaq.deploy.onnx.blocks import SIZES, block_of, fits_kernels
from zsaq.deploy.onnx.rounding import StaticRounding, TokenRounding, check_inputs, emit
from zsaq.quant.kinds import factor_of
from zsaq.quant.packed import PackedConv1D, PackedEmbedding, PackedLayer, PackedLinear
from zsaq.quant.quantizer import Quantizer

MICROSOFT: Final = "com.microsoft::"
INT8: Final = 3  # ONNX's number of the type
INT32: Final = 6


class OnnxLayer(nn.Module):
    """What the layers in a trace share. Never constructed: `to_operators` gives a packed layer its class."""

    stored: Tensor
    table_: Tensor
    weight_scale: Tensor
    weight_zero: Tensor
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


@final
class Int8Linear(OnnxLayer):
    """x [..., in] to [..., out]: codes times codes in 32-bit integers, then both scales and the bias.

    A static scale stands in the product itself, and so does the bias then. A token's comes behind it.
    """

    rounding: StaticRounding | TokenRounding

    def forward(self, input: Tensor) -> Tensor:
        rows, columns = self.shape
        codes, inside, behind = self.rounding.codes(input)
        kind = torch.int8 if self.integers.zero is None else torch.uint8
        weight = self.widened(kind, (rows, self.stored.shape[1] * self.table_.shape[1]))
        weight = weight[:, :columns] if weight.shape[1] > columns else weight
        groups, shape = self.integers.groups(), (*input.shape[:-1], rows)
        if groups == 1:
            weight = emit("Transpose", (weight,), kind, (columns, rows), perm=[1, 0])
            operands = (codes, weight, inside, self.weight_scale, self.rounding.zero, self.weight_zero)
            operands += (self.bias,) if behind is None and self.bias is not None else ()
            y = emit(f"{MICROSOFT}MatMulIntegerToFloat", operands, torch.float32, shape)
            if behind is None:
                return y
        else:
            size = columns // groups
            weight = weight.reshape(rows, groups, size).permute(1, 2, 0)
            parts = codes.reshape(-1, groups, size).transpose(0, 1)
            operands = (parts, weight, self.rounding.zero, self.weight_zero)
            sums = emit("MatMulInteger", operands, torch.int32, (groups, parts.shape[1], rows))
            y = (sums.float() * self.weight_scale).sum(0).reshape(shape)
        y = y * (inside if behind is None else behind)
        if self.bias is None:
            return y
        # ONNX Runtime adds a bias of one dimension within the GELU that follows, which takes longer.
        return y + (self.bias[None] if input.ndim > 1 else self.bias)


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


@torch.no_grad()
def to_operators(layer: PackedLayer, blocks: bool = False) -> None:
    """Give a packed layer its class for the trace, in place. Raises ValueError for a rule that no kernel has.

    `blocks`: round inputs once a block where the student rounds them once a token (see `has_blocks`).
    """
    integers, quantizer = Integers.of(layer), layer.input_quantizer
    if isinstance(layer, PackedEmbedding):
        if integers.zero is not None:
            raise ValueError("an asymmetric token table has no kernel yet; give QuantConfig.embedding a symmetric Grid")
        if not fits_kernels(layer.shape[1], integers.groups()):
            raise ValueError(
                f"a token table of {layer.shape[1]} columns in {integers.groups()} groups has no kernel, since these "
                f"divide into no blocks of {', '.join(map(str, sorted(SIZES)))}: leave the table in floats (e16)"
            )
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
    become(layer, Int8Linear, integers).operands(
        integers.table(torch.int8 if integers.zero is None else torch.uint8), weight_scale=scale, weight_zero=zero
    )
    layer.rounding = (StaticRounding if quantizer.ranges.static else TokenRounding)(quantizer)


def become(layer: PackedLayer, kind: type[OnnxLayer], integers: Integers) -> OnnxLayer:
    layer.__class__ = kind  # type: ignore[assignment]
    assert isinstance(layer, OnnxLayer)
    layer.integers = integers
    return layer
