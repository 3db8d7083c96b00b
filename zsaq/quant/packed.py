"""The quantized layers of a loaded model: packed integers and scales instead of latent weights.

They compute what the trained layers compute, with the same operations in the same order, so outputs agree bit for bit.
As there, a layer changes class in place: names, biases and `isinstance(m, nn.Linear)` stay.
"""

from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zsaq.quant.attention import QuantAttention, Rounded, quant_attentions
from zsaq.quant.codes import dequantize
from zsaq.quant.kinds import ExpertLinear, by_expert
from zsaq.quant.last import LAST
from zsaq.quant.layers import Conv1D, QuantActivation, quant_activations
from zsaq.quant.packing import pack, unpack
from zsaq.quant.quantizer import Quantizer
from zsaq.quant.unpacked import WRITTEN, Unpacked


class PackedLayer(Unpacked):
    """What the packed layers share. Never constructed: `become_packed` gives a layer its class.

    Buffers: `codes` [out, bytes] uint8; `scale` [out, 1], [out, groups, 1] or [1, 1], in the format that the grid has
    for it, whatever the model is cast to; `unit` [1] float32, times which the scales of some formats stand; `zero` like
    scale, uint8, only on asymmetric grids. The end of a tie has none and reads its table's.
    """

    bias: Tensor | None
    input_quantizer: Quantizer | None

    def inputs(self, x: Tensor) -> Tensor:
        return x if self.input_quantizer is None else LAST.rounded(x, self.input_quantizer)

    def _apply(self, fn, recurse: bool = True):
        held = {name: self._buffers[name] for name in ("scale", "unit") if name in self._buffers}
        kept = self.shown if self.table is None and self.written() else None
        super()._apply(fn, recurse)
        self.release()
        self.dtype, self.shown = fn(torch.empty(0, dtype=self.dtype)).dtype, None if kept is None else fn(kept)
        for name, before in held.items():
            now = self._buffers[name]
            if before is not None and now is not None and now.dtype != before.dtype:  # cast with the model
                self._buffers[name] = before.to(now.device)
        return self

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        weight = state_dict.get(f"{prefix}weight")
        if isinstance(weight, Tensor) and weight.is_floating_point():
            raise ValueError(f"{prefix}weight cannot be loaded: {WRITTEN}")
        self.release()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def check(self) -> None:
        """Raises ValueError for values that no student has."""
        if self.table is None:
            if self.codes.is_meta:
                raise ValueError("its codes lie on the meta device: leave offload_buffers off")
            scales = self.scales().abs() if self.grid.lopsided else self.scales()
            if not (scales.isfinite() & (scales > 0)).all():
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
    def laid_out(self, rows: Tensor) -> Tensor:
        return rows.T

    def flat(self, weight: Tensor) -> Tensor:
        return weight.T

    def forward(self, x: Tensor) -> Tensor:
        x = self.inputs(x)
        return F.linear(x, self.dequantized(x.dtype), self.bias)


@final
class PackedConv2d(PackedLayer, nn.Conv2d):  # type: ignore[misc]
    def laid_out(self, rows: Tensor) -> Tensor:
        return rows.view(self.out_channels, -1, *self.kernel_size)

    def flat(self, weight: Tensor) -> Tensor:
        return weight.flatten(1)

    def forward(self, input: Tensor) -> Tensor:
        x = self.inputs(input)
        return self._conv_forward(x, self.laid_out(self.dequantized(x.dtype)), self.bias)


@final
class PackedEmbedding(PackedLayer, nn.Embedding):  # type: ignore[misc]
    """Unpacks only the rows that are looked up."""

    def forward(self, input: Tensor) -> Tensor:
        owner = self if self.table is None else self.table
        owner.follow()
        if owner.shown is not None:
            return F.embedding(input, owner.shown)
        flat = input.flatten()
        codes = unpack(F.embedding(flat, owner.codes), owner.grid.bits, (len(flat), owner.shape[1]))
        zero = owner.grid.zero if owner.grid.symmetric else owner.zero[flat]
        rows = dequantize(codes.short() + owner.grid.low, owner.scales(flat, self.dtype), zero, owner.grid)
        return rows.to(self.dtype).view(*input.shape, owner.shape[1])


@final
class PackedExpertLinear(PackedLayer, ExpertLinear):  # type: ignore[misc]
    experts: int

    def laid_out(self, rows: Tensor) -> Tensor:
        return rows.unflatten(0, (self.experts, -1))

    def flat(self, weight: Tensor) -> Tensor:
        return weight.flatten(0, 1)

    def forward(self, rows: Tensor, counts: list[int]) -> Tensor:
        x = self.inputs(rows)
        return by_expert(x, self.laid_out(self.dequantized(x.dtype)), counts)


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


def quantized(model: nn.Module) -> Iterator[tuple[str, PackedLayer | QuantActivation | QuantAttention]]:
    """Names and modules of what a loaded model's plan names: packed layers, then activations, then attentions."""
    yield from packed_layers(model)
    yield from ((name, module) for name, module in quant_activations(model) if not isinstance(module, Rounded))
    yield from quant_attentions(model)
