"""The integers of a packed layer in the forms that kernels read: the stored bytes, and tables that widen them.

A file keeps the codes at 2, 4 or 8 bits (3 bits stand in 4, and 5 to 7 in 8). A runtime widens them once, when it opens
the file, through a table with one row for each value of a byte. No code is rounded anew.

Half-integer levels become odd integers: (c + 0.5) * s = (2c + 1) * (s / 2), exact in any binary float.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from zsaq.quant.packed import PackedLayer
from zsaq.quant.packing import pack, unpack
from zsaq.quant.unpacked import Unpacked


@final
@dataclass(frozen=True)
class Integers:
    """Weights `(value - zero) * scale`, each value an integer that the table reads from a byte.

    stored: uint8 [out, bytes], low bits first, `bits` (2, 4 or 8) a code, counted from the grid's lowest code;
    values: int16 [2 ** bits], the integer of each code; scale: float32 [out, groups] or [1, 1];
    zero: uint8 like scale, or None where it is zero.
    """

    stored: Tensor
    bits: int
    columns: int
    values: Tensor
    scale: Tensor
    zero: Tensor | None

    @classmethod
    def of(cls, layer: PackedLayer) -> "Integers":
        owner = layer if layer.table is None else layer.table
        grid, bits = owner.grid, next(b for b in (2, 4, 8) if b >= owner.grid.bits)
        stored = owner.codes if bits == grid.bits else pack(unpack(owner.codes, grid.bits, owner.shape), bits)
        if not grid.uniform:
            raise ValueError(f"{grid.levels} levels are not evenly spaced, and no kernel here looks values up")
        times = 1 if grid.zero.is_integer() else 2
        values = times * torch.tensor(grid.values)[torch.arange(2**bits).clamp(max=len(grid.values) - 1)]
        return cls(
            stored,
            bits,
            owner.shape[1],
            values.to(torch.int16),
            Unpacked.scales(owner).flatten(1) / times,  # also of a table that has got its class for the trace
            None if grid.symmetric else owner.zero.flatten(1),
        )

    def groups(self) -> int:
        """How many scales a row has."""
        return self.scale.shape[1]

    def table(self, dtype: torch.dtype) -> Tensor:
        """[256, codes a byte]: the integers in a byte, as int8, or as uint8 where a zero is to be taken off."""
        return self.values[self._codes()].to(dtype)

    def repacked(self) -> tuple[int, Tensor]:
        """Bits and a table [256, bytes] for kernels that take `value + 2 ** (bits - 1)`, packed low bits first.

        The same bits where the values fit, else 4: odd integers, up to 3. Of symmetric grids.
        """
        bits = 4 if self.bits == 2 and int(self.values.max()) > 1 else self.bits
        return bits, pack(self.values[self._codes()] + 2 ** (bits - 1), bits)

    def _codes(self) -> Tensor:
        byte = torch.arange(256)
        return torch.stack([byte >> (self.bits * i) & (2**self.bits - 1) for i in range(8 // self.bits)], 1)
