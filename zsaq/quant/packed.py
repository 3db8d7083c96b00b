"""The quantized layers of a loaded model: packed integers and scales instead of latent weights.

They compute what the trained layers compute, with the same operations in the same order, so outputs agree bit for bit.
As there, a layer changes class in place: names, biases and `isinstance(m, nn.Linear)` stay.
"""

from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zsaq.quant.codes import dequantize
from zsaq.quant.grid import Grid
from zsaq.quant.kinds import ExpertLinear, by_expert
from zsaq.quant.layers import Conv1D, QuantActivation, quant_activations
from zsaq.quant.packing import pack, unpack
from zsaq.quant.quantizer import Quantizer


class PackedLayer(nn.Module):
    """What the packed layers share. Never constructed: `become_packed` gives a layer its class.

    Buffers: `codes` [out, bytes] uint8; `scale` [out, 1], [out, groups, 1] or [1, 1], float32 whatever the model is
    cast to; `zero` like scale, uint8, only on asymmetric grids. The end of a tie has none and reads its table's.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    bias: Tensor | None
    grid: Grid
    shape: tuple[int, int]  # of the codes: output rows, input columns
    table: "PackedLayer | None"
    input_quantizer: Quantizer | None
    dtype: torch.dtype  # of the model around it
    cache: Tensor | None

    def zeros(self) -> Tensor | float:
        return self.grid.zero if self.grid.symmetric else self.zero

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The weight, rows first and flat [out, in * ...], unpacked once for each device and dtype, then kept."""
        if self.table is not None:
            return self.table.dequantized(dtype)
        if self.cache is None or (self.cache.dtype, self.cache.device) != (dtype, self.codes.device):
            # An inference tensor would be of no use to a later pass with gradients.
            with torch.inference_mode(False), torch.no_grad():
                codes = unpack(self.codes, self.grid.bits, self.shape).short() + self.grid.low
                self.cache = dequantize(codes, self.scale, self.zeros(), self.grid).to(dtype)
            self.cache._is_hf_initialized = True  # type: ignore[attr-defined]  # or transformers would draw it anew
        return self.cache

    @property
    def weight(self) -> Tensor:
        """The weight in the model's dtype and the float layer's layout. For reading: what is written there is lost."""
        return self.dequantized(self.dtype)

    def inputs(self, x: Tensor) -> Tensor:
        return x if self.input_quantizer is None else self.input_quantizer(x)

    def _apply(self, fn, recurse: bool = True):
        scale = None if self.table is not None else self.scale
        super()._apply(fn, recurse)
        self.dtype, self.cache = fn(torch.empty(0, dtype=self.dtype)).dtype, None
        if scale is not None and self.scale.dtype != torch.float32:  # cast with the model: it would lose bits
            self.scale = scale.to(self.scale.device)
        return self

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        self.cache = None
        super()._load_from_state_dict(*args, **kwargs)

    def check(self) -> None:
        """Raises ValueError for values that no student has."""
        if self.table is None:
            if not (self.scale.isfinite() & (self.scale > 0)).all():
                raise ValueError("scale is not finite and positive everywhere")
            codes = unpack(self.codes, self.grid.bits, self.shape)
            if codes.numel() and int(codes.max()) > self.grid.high - self.grid.low:
                raise ValueError(f"a code is {int(codes.max())}, the grid ends at {self.grid.high - self.grid.low}")
            if not torch.equal(pack(codes, self.grid.bits), self.codes):
                raise ValueError("the bits that pad the rows of codes are not zero")
            if not self.grid.symmetric and int(self.zero.max()) > self.grid.high:
                raise ValueError(f"a zero is {int(self.zero.max())}, the grid ends at {self.grid.high}")
        if self.input_quantizer is not None:
            self.input_quantizer.ranges.check()


@final
class PackedLinear(PackedLayer, nn.Linear):  # type: ignore[misc]
    def forward(self, input: Tensor) -> Tensor:
        x = self.inputs(input)
        return F.linear(x, self.dequantized(x.dtype), self.bias)


@final
class PackedConv1D(PackedLayer, Conv1D):  # type: ignore[misc]
    @property
    def weight(self) -> Tensor:
        return self.dequantized(self.dtype).T

    def forward(self, x: Tensor) -> Tensor:
        x = self.inputs(x)
        return F.linear(x, self.dequantized(x.dtype), self.bias)


@final
class PackedConv2d(PackedLayer, nn.Conv2d):  # type: ignore[misc]
    @property
    def weight(self) -> Tensor:
        return self.kernel(self.dtype)

    def kernel(self, dtype: torch.dtype) -> Tensor:
        return self.dequantized(dtype).view(self.out_channels, -1, *self.kernel_size)

    def forward(self, input: Tensor) -> Tensor:
        x = self.inputs(input)
        return self._conv_forward(x, self.kernel(x.dtype), self.bias)


@final
class PackedEmbedding(PackedLayer, nn.Embedding):  # type: ignore[misc]
    """Unpacks only the rows that are looked up."""

    def forward(self, input: Tensor) -> Tensor:
        owner = self if self.table is None else self.table
        flat = input.flatten()
        codes = unpack(F.embedding(flat, owner.codes), owner.grid.bits, (len(flat), owner.shape[1]))
        zero = owner.grid.zero if owner.grid.symmetric else owner.zero[flat]
        rows = dequantize(codes.short() + owner.grid.low, owner.scale[flat], zero, owner.grid)
        return rows.to(self.dtype).view(*input.shape, owner.shape[1])


@final
class PackedExpertLinear(PackedLayer, ExpertLinear):  # type: ignore[misc]
    experts: int

    @property
    def weight(self) -> Tensor:
        return self.matrices(self.dtype)

    def matrices(self, dtype: torch.dtype) -> Tensor:
        return self.dequantized(dtype).unflatten(0, (self.experts, -1))

    def forward(self, rows: Tensor, counts: list[int]) -> Tensor:
        x = self.inputs(rows)
        return by_expert(x, self.matrices(x.dtype), counts)


PACKS: dict[type, type[PackedLayer]] = {
    nn.Linear: PackedLinear,
    Conv1D: PackedConv1D,
    nn.Conv2d: PackedConv2d,
    nn.Embedding: PackedEmbedding,
    ExpertLinear: PackedExpertLinear,
}


def packed_layers(model: nn.Module) -> Iterator[tuple[str, PackedLayer]]:
    """Names and packed layers, each once."""
    for name, module in model.named_modules():
        if isinstance(module, PackedLayer):
            yield name, module


def quantized(model: nn.Module) -> Iterator[tuple[str, PackedLayer | QuantActivation]]:
    """Names and modules of what a loaded model's plan names: packed layers, then activations."""
    yield from packed_layers(model)
    yield from quant_activations(model)
