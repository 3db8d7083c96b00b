"""A packed linear layer as GPTQ's checkpoints store it, from the codes as they are.

A weight [out, in] is (u - zero) * scale, u in 0 .. 2^bits - 1. `qweight` int32 [in * bits / 32, out]: down each column
one stream of `bits` bits a value, low bits first; `qzeros` int32 [groups, out * bits / 32], such a stream along each
row; `scales` float16 [groups, out]; `g_idx` int32 [in], the group of each input. The format "gptq" holds zero - 1 in
`qzeros`, "gptq_v2" the zero itself.

All layers of a file have one width and one size of groups. Narrower codes stand in the widest layer's bits, and a scale
of a larger group is repeated: both are exact. Widths that readers share are 2, 3, 4 and 8.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor
from torch.nn import functional as F

from zsaq.quant.packed import PackedLayer
from zsaq.quant.packing import pack, unpack

WIDTHS: Final = (2, 3, 4, 8)
GROUPS: Final = (128, 64, 32, 16)
ALIGNED: Final = 32  # inputs and outputs come in multiples of as many


@final
@dataclass(frozen=True)
class Layout:
    """What a file says of all its layers; `group`: inputs that share a scale, -1 for all of a row."""

    bits: int
    group: int
    symmetric: bool
    format: str

    @classmethod
    def of(cls, layers: Iterable[tuple[str, PackedLayer]]) -> "Layout":
        """The layout that holds all of them. Raises ValueError for what none holds, by the layer's name."""
        found = [(layer.shape[1], Scaling.of(name, layer)) for name, layer in layers]
        bits = max(scaling.bits for _, scaling in found)
        group = -1
        if any(scaling.scale.shape[1] > 1 for _, scaling in found):
            shared = math.gcd(*(columns // scaling.scale.shape[1] for columns, scaling in found))
            group = next((size for size in GROUPS if shared % size == 0), 0)
            if not group:
                raise ValueError(
                    f"its groups are of {shared} inputs, and readers of GPTQ's layout take multiples of {GROUPS[-1]}: "
                    "quantize with g32, g64 or g128"
                )
        zeros = [scaling.zero for _, scaling in found if scaling.zero is not None]
        below = any(int(zero.min()) == 0 for zero in zeros)  # whose zero - 1 is no code
        return cls(bits, group, not zeros, "gptq_v2" if below else "gptq")


@final
@dataclass(frozen=True)
class Scaling:
    """What weights (value - zero) * scale have beside their integers: `scale` float32 and `zero` uint8 [out, groups],
    values then counted from 0, or None, values then around 0; `bits`: a width that holds the values; `idle`: bool
    [out, groups], where all are stored as zeros, None for nowhere. Float16 holds all scales: any serves an idle group.
    At half-integer levels groups are idle whose smallest values, times a scale that is 0 in float16, are all that they
    have: they stand for zeros."""

    scale: Tensor
    zero: Tensor | None
    bits: int
    idle: Tensor | None

    @classmethod
    def of(cls, name: str, layer: PackedLayer) -> "Scaling":
        """Raises ValueError for levels and shapes that the layout does not have, and for scales that float16 does not
        hold, as a number other than 0."""
        grid, (rows, columns) = layer.grid, layer.shape
        if not grid.uniform:
            raise ValueError(f"{name}: its weights have {grid.levels} levels, which GPTQ's layout does not have")
        if rows % ALIGNED or columns % ALIGNED:
            raise ValueError(
                f"{name}: it has {columns} inputs and {rows} outputs, and GPTQ's layout packs multiples of {ALIGNED}"
            )
        scale = layer.scales().flatten(1).expand(rows, -1)
        odd = not grid.zero.is_integer()  # half-integer levels; readers know 3 bits less well than 4
        scale = scale / 2 if odd else scale
        bits = 4 if odd else next(width for width in WIDTHS if width >= grid.bits)
        zero = None if grid.symmetric else layer.zero.flatten(1).expand(rows, -1)
        idle = None
        if bool((lost := scale.half() == 0).any()):
            values = codes(layer).unflatten(1, (scale.shape[1], -1))
            none = values.abs() == 1 if odd else values == (0 if zero is None else zero[..., None])
            idle = none.all(-1) & lost
            scale = scale.masked_fill(idle, torch.finfo(torch.float16).tiny)
        half = scale.half()
        if not (half.isfinite() & (half != 0)).all():
            remedy = "quantize with -s16" + " and 3 bits or more" * odd
            raise ValueError(f"{name}: a scale is beyond float16, which GPTQ's layout has: {remedy}")
        return cls(scale, zero, bits, idle)

    def integers(self, layer: PackedLayer) -> Tensor:
        """The values int16 [out, in]."""
        values = codes(layer)
        if self.idle is None:
            return values
        zero = torch.zeros_like(self.idle) if self.zero is None else self.zero
        grouped = values.unflatten(1, (self.idle.shape[1], -1))
        return torch.where(self.idle[..., None], zero[..., None].short(), grouped).flatten(1)


def codes(layer: PackedLayer) -> Tensor:
    """The layer's codes int16 [out, in], half-integer ones as 2 * code + 1."""
    values = unpack(layer.codes, layer.grid.bits, layer.shape).short() + layer.grid.low
    return values if layer.grid.zero.is_integer() else 2 * values + 1


def words(values: Tensor, bits: int) -> Tensor:
    """int32 [rows, n * bits / 32] of values [rows, n] from 0 on: value i starts at bit i * bits of its row."""
    stream = pack(values, bits)
    return F.pad(stream, (0, -stream.shape[1] % 4)).view(torch.int32)


def store(name: str, layer: PackedLayer, layout: Layout) -> dict[str, Tensor]:
    """The layer's tensors. Raises ValueError as `Scaling.of` does."""
    scaling, columns = Scaling.of(name, layer), layer.shape[1]
    size = columns if layout.group == -1 else layout.group
    repeats = columns // size // scaling.scale.shape[1]
    middle = 2 ** (layout.bits - 1)
    values = scaling.integers(layer) + (middle if scaling.zero is None else 0)
    zero = torch.full_like(scaling.scale, middle) if scaling.zero is None else scaling.zero
    stored = zero.short().repeat_interleave(repeats, 1).T - int(layout.format == "gptq")
    return {
        "qweight": words(values, layout.bits).T.contiguous(),
        "qzeros": words(stored.contiguous(), layout.bits),
        "scales": scaling.scale.half().repeat_interleave(repeats, 1).T.contiguous(),
        "g_idx": (torch.arange(columns) // size).int(),
    }
