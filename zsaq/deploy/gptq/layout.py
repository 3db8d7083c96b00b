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
        found = [(layer, Integers.of(name, layer)) for name, layer in layers]
        bits = max(integers.bits for _, integers in found)
        sizes = [layer.shape[1] // integers.scale.shape[1] for layer, integers in found]
        group = -1
        if any(integers.scale.shape[1] > 1 for _, integers in found):
            shared = math.gcd(*sizes)
            group = next((size for size in GROUPS if shared % size == 0), 0)
            if not group:
                raise ValueError(
                    f"its groups are of {shared} inputs, and readers of GPTQ's layout take multiples of {GROUPS[-1]}: "
                    "quantize with g32, g64 or g128"
                )
        zeros = [integers.zero for _, integers in found if integers.zero is not None]
        below = any(int(zero.min()) == 0 for zero in zeros)  # whose zero - 1 is no code
        return cls(bits, group, not zeros, "gptq_v2" if below else "gptq")


@final
@dataclass(frozen=True)
class Integers:
    """Weights (value - zero) * scale: `values` int16 [out, in]; `zero` uint8 like the float32 `scale` [out, groups],
    values then counted from 0, or None, values then around 0; `bits`: a width that holds them."""

    values: Tensor
    scale: Tensor
    zero: Tensor | None
    bits: int

    @classmethod
    def of(cls, name: str, layer: PackedLayer) -> "Integers":
        """Raises ValueError for levels and shapes that the layout does not have."""
        grid, (rows, columns) = layer.grid, layer.shape
        if not grid.uniform:
            raise ValueError(f"{name}: its weights have {grid.levels} levels, which GPTQ's layout does not have")
        if rows % ALIGNED or columns % ALIGNED:
            raise ValueError(
                f"{name}: it has {columns} inputs and {rows} outputs, and GPTQ's layout packs multiples of {ALIGNED}"
            )
        values = unpack(layer.codes, grid.bits, layer.shape).short() + grid.low
        scale = layer.scales().flatten(1).expand(rows, -1)
        if not grid.zero.is_integer():  # half-integer levels; readers know 3 bits less well than 4
            return cls(2 * values + 1, scale / 2, None, 4)
        bits = next(width for width in WIDTHS if width >= grid.bits)
        return cls(values, scale, None if grid.symmetric else layer.zero.flatten(1).expand(rows, -1), bits)


def halved(name: str, scale: Tensor) -> Tensor:
    """Scales in float16. Raises ValueError for those that it does not hold, as a number other than 0."""
    half = scale.half()
    if not (half.isfinite() & (half != 0)).all():
        raise ValueError(f"{name}: a scale is beyond float16, which GPTQ's layout has: quantize with -s16")
    return half


def words(values: Tensor, bits: int) -> Tensor:
    """int32 [rows, n * bits / 32] of values [rows, n] from 0 on: value i starts at bit i * bits of its row."""
    stream = pack(values, bits)
    return F.pad(stream, (0, -stream.shape[1] % 4)).view(torch.int32)


def store(name: str, layer: PackedLayer, layout: Layout) -> dict[str, Tensor]:
    """The layer's tensors. Raises ValueError as `Integers.of` and `halved` do."""
    integers, columns = Integers.of(name, layer), layer.shape[1]
    size = columns if layout.group == -1 else layout.group
    repeats = columns // size // integers.scale.shape[1]
    middle = 2 ** (layout.bits - 1)
    values = integers.values if integers.zero is not None else integers.values + middle
    zero = torch.full_like(integers.scale, middle) if integers.zero is None else integers.zero
    stored = zero.short().repeat_interleave(repeats, 1).T - int(layout.format == "gptq")
    return {
        "qweight": words(values, layout.bits).T.contiguous(),
        "qzeros": words(stored.contiguous(), layout.bits),
        "scales": halved(name, integers.scale).repeat_interleave(repeats, 1).T.contiguous(),
        "g_idx": (torch.arange(columns) // size).int(),
    }
