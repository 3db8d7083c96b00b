"""A packed layer in one of ggml's types: the same integers, and scales of 16 bits."""

from dataclasses import dataclass, field
from typing import Any, Final, final

import numpy as np
import torch
from numpy.typing import NDArray

from zsaq.deploy.gguf.layouts import LAYOUTS, Layout
from zsaq.quant.bounds import LEAST
from zsaq.quant.packed import PackedLayer
from zsaq.quant.packing import unpack

MOST: Final = 2.0**-10  # relative: a normal float16 is at most half of that away


@final
@dataclass(frozen=True)
class Stored:
    """`rows`, uint8 [out, bytes], of the layout, and `values`, float32 [out, in], what they say; `scale_changed`: the
    largest relative change of a scale; `changed`: what differs from the student, in words."""

    layout: Layout
    rows: NDArray[np.uint8]
    values: NDArray[np.float32]
    scale_changed: float
    changed: list[str] = field(default_factory=list)


def integers(layer: PackedLayer) -> tuple[torch.Tensor, torch.Tensor, float, list[str]]:
    """Integers int16 [out, in], scales float32 [out, groups], and an offset: values are (integer + offset) * scale.

    Raises ValueError for levels that are not evenly spaced.
    """
    grid, rows = layer.grid, layer.shape[0]
    if not grid.uniform:
        raise ValueError(
            f"its weights have {grid.levels} levels, not evenly spaced; quantize with integer, half or ternary ones"
        )
    codes = unpack(layer.codes, grid.bits, layer.shape).short() + grid.low
    scale = layer.scales().flatten(1).expand(rows, -1)
    if grid.symmetric:
        return codes, scale, -grid.zero, []
    zero = layer.zero.flatten(1).expand(rows, -1).short().repeat_interleave(layer.shape[1] // scale.shape[1], 1)
    return codes - zero, scale, 0.0, ["asymmetric weights are stored as code - zero, with one bit more"]


def fitting(low: int, high: int, offset: float, group: int) -> Layout | None:
    """The smallest layout that holds integers from `low` to `high`, `group` of which share a scale."""
    for layout in LAYOUTS:
        if layout.offset == offset and layout.low <= low and high <= layout.high and group % layout.size == 0:
            return layout
    return None


def store(layer: PackedLayer) -> Stored:
    """Raises ValueError for what no type of ggml holds: other levels, asymmetric 8 bits, groups that are no multiple of
    32, and scales that float16 does not hold."""
    owner: Any = layer if layer.table is None else layer.table
    codes, scale, offset, changed = integers(owner)
    columns, groups = owner.shape[1], scale.shape[1]
    low, high = owner.grid.low, owner.grid.high
    if not owner.grid.symmetric:
        low, high = -high, high
    layout = fitting(low, high, offset, columns // groups)
    if layout is None and offset:  # odd integers at half the scale
        codes, scale, low, high, offset = 2 * codes + 1, scale / 2, 2 * low + 1, 2 * high + 1, 0.0
        layout = fitting(low, high, offset, columns // groups)
        changed.append(f"half-integer levels c are stored as 2c + 1 in {layout and layout.name}, half the scale")
    if layout is None:
        raise ValueError(
            f"ggml has no type for {owner.grid.bits} bits of which {columns // groups} share a scale; quantize in "
            "groups or blocks of 32 or 256 (columns have to be a multiple), as in w4a16g32"
        )
    blocks = columns // layout.size
    wide = scale.repeat_interleave(blocks // groups, 1) if blocks != groups else scale
    halves = (wide * layout.unit).half()
    held = halves.float() / layout.unit
    void = wide.abs() <= LEAST  # of weights that are all zero
    apart = torch.where(void, 0.0, ((held - wide) / wide).abs()).max()
    if not apart <= MOST:
        raise ValueError(
            f"a scale from {float(wide.abs().min()):.3g} to {float(wide.abs().max()):.3g} is no float16: quantize with "
            "scales of float16 (-s16, as in w4a16g32-s16)"
        )
    q = (codes - layout.low).to(torch.uint8).numpy().reshape(-1, layout.size)
    flat = halves.numpy().reshape(-1, 1)
    rows = layout.lay(q, flat).reshape(owner.shape[0], -1)
    values = (codes.float() + offset) * held.repeat_interleave(layout.size, 1)
    return Stored(layout, np.ascontiguousarray(rows), values.numpy(), float(apart), changed)
