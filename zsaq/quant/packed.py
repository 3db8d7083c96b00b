"""The quantized layers of a loaded model: packed integers and scales instead of latent weights.

They compute what the trained layers compute, with the same operations in the same order, so outputs agree bit for bit.
As there, a layer changes class in place: names, biases and `isinstance(m, nn.Linear)` stay.
"""

from collections.abc import Iterator
from typing import Final, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zsaq.quant.codes import dequantize
from zsaq.quant.grid import Grid
from zsaq.quant.layers import Conv1D, QuantActivation, quant_activations
from zsaq.quant.packing import pack, unpack
from zsaq.quant.quantizer import Quantizer

WRITTEN: Final = (
    "the weight of a loaded model is read from its codes, which cannot hold what is written into it (a merged adapter, an "
    "edited or resized weight): write into, or merge into, the float model and quantize that again"
)


def edited(before: list[tuple[int, int]], now: list[tuple[int, int]]) -> bool:
    """Whether the same tensors have been written to."""
    return [key for key, _ in before] == [key for key, _ in now] and before != now


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
    cache: Tensor | None  # the weight as the forward pass has last used it
    shown: Tensor | None  # and as it was handed out
    made_of: list[tuple[int, int]]  # the codes and scale that these were unpacked from

    def zeros(self) -> Tensor | float:
        return self.grid.zero if self.grid.symmetric else self.zero

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The weight, rows first and flat [out, in * ...], unpacked once for each device and dtype, then kept."""
        if self.table is not None:
            return self.table.dequantized(dtype)
        self.follow()
        if self.shown is not None and self.shown.dtype == dtype:
            return self.flat(self.shown)
        if self.cache is None or (self.cache.dtype, self.cache.device) != (dtype, self.codes.device):
            written = self.shown is not None and self.written()
            self.cache = self.flat(self.shown).to(dtype) if written else self.unpacked(dtype)  # type: ignore[arg-type]
            self.made_of = self.stamps()
        return self.cache

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """The weight as its codes say it, rows first and flat."""
        # An inference tensor would be of no use to a later pass with gradients.
        with torch.inference_mode(False), torch.no_grad():
            codes = unpack(self.codes, self.grid.bits, self.shape).short() + self.grid.low
            return dequantize(codes, self.scale, self.zeros(), self.grid).to(dtype)

    @property
    def weight(self) -> Tensor:
        """The weight in the model's dtype and the float layer's layout, always the same tensor.

        What is written there is computed with from then on, as peft does where it merges; no code holds it, so `save`
        refuses it (`check_kept`). Raises ValueError if another is assigned.
        """
        if self.table is not None:
            return self.table.weight
        self.follow()
        if self.shown is None:
            shown = self.laid_out(self.dequantized(self.dtype))
            shown._is_hf_initialized = True  # type: ignore[attr-defined]  # or transformers would draw it anew
            self.shown = shown
        self.cache = None
        return self.shown

    @weight.setter
    def weight(self, value: object) -> None:
        raise ValueError(WRITTEN)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        if name == "weight":
            raise ValueError(WRITTEN)
        super().register_parameter(name, param)

    def laid_out(self, rows: Tensor) -> Tensor:
        """Rows [out, in * ...] in the float layer's layout."""
        return rows

    def flat(self, weight: Tensor) -> Tensor:
        """The inverse of `laid_out`."""
        return weight

    def written(self) -> bool:
        """Whether the weight that was shown is not what the codes say any more."""
        shown = self.shown
        return shown is not None and not torch.equal(self.flat(shown), self.unpacked(shown.dtype).to(shown.device))

    def follow(self) -> None:
        """Let go of what was unpacked before codes or scale were changed in place, and follow them to their device."""
        if torch.compiler.is_compiling():  # nothing is written within a graph
            return
        stamps = self.stamps()
        if self.shown is not None and (self.shown.is_meta or edited(self.made_of, stamps)):
            self.shown = None
        if edited(self.made_of, stamps):
            self.cache = None
        if self.shown is not None and self.shown.device != self.codes.device:
            self.shown = self.shown.to(self.codes.device) if self.written() else None
        self.made_of = stamps

    def stamps(self) -> list[tuple[int, int]]:
        """Which tensors the weight is made of, and how often each was written to."""
        return [(id(t), 0 if t.is_inference() else t._version) for t in self.buffers(recurse=False)]

    def release(self) -> None:
        """Free what was unpacked, and forget what was written there."""
        self.cache = self.shown = None
        self.made_of = []

    def inputs(self, x: Tensor) -> Tensor:
        return x if self.input_quantizer is None else self.input_quantizer(x)

    def _apply(self, fn, recurse: bool = True):
        scale = None if self.table is not None else self.scale
        kept = self.shown if self.table is None and self.written() else None
        super()._apply(fn, recurse)
        self.release()
        self.dtype, self.shown = fn(torch.empty(0, dtype=self.dtype)).dtype, None if kept is None else fn(kept)
        if scale is not None and self.scale.dtype != torch.float32:  # cast with the model: it would lose bits
            self.scale = scale.to(self.scale.device)
        return self

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        weight = state_dict.get(f"{prefix}weight")
        if isinstance(weight, Tensor) and weight.is_floating_point():
            raise ValueError(f"{prefix}weight cannot be loaded: {WRITTEN}")
        self.release()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def check_kept(self) -> None:
        """Raises ValueError if it computes with anything but what its codes say."""
        for seen in (
            () if self.table is not None else (self.cache, None if self.shown is None else self.flat(self.shown))
        ):
            if seen is not None and not torch.equal(seen, self.unpacked(seen.dtype).to(seen.device)):
                raise ValueError(WRITTEN)

    def check(self) -> None:
        """Raises ValueError for values that no student has."""
        if self.table is None:
            if self.codes.is_meta:
                raise ValueError("its codes lie on the meta device: leave offload_buffers off")
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
        rows = dequantize(codes.short() + owner.grid.low, owner.scale[flat], zero, owner.grid)
        return rows.to(self.dtype).view(*input.shape, owner.shape[1])


PACKS: dict[type, type[PackedLayer]] = {
    nn.Linear: PackedLinear,
    Conv1D: PackedConv1D,
    nn.Conv2d: PackedConv2d,
    nn.Embedding: PackedEmbedding,
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
