"""A packed linear layer as compressed-tensors stores it: its tensors and its scheme, from the codes as they are.

A weight is code * scale. Layout "pack-quantized": `weight_packed` int32 [rows, ceil(columns * bits / 32)], in each row
one stream of `bits` bits a code, low bits first (the stream of `zsaq.packing`, padded to whole words), of
code + 2^(bits - 1); `weight_shape` int64 [2]. Layout "int-quantized": `weight` int8 [rows, columns]. In both
`weight_scale` [rows, 1] or [rows, groups].
"""

from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from zsaq.quant.grid import Grid
from zsaq.quant.packed import PackedLayer
from zsaq.quant.packing import pack, unpack
from zsaq.quant.quantizer import Quantizer

PACKED: Final = "pack-quantized"
BYTES: Final = "int-quantized"


@dataclass(frozen=True)
class Stored:
    """`tensors` by their names in the layer, `scheme` as in a config group, `changed`: what differs, in words."""

    scheme: dict[str, Any]
    tensors: dict[str, Tensor]
    changed: list[str] = field(default_factory=list)


def to_int32(codes: Tensor, bits: int) -> Tensor:
    """int32 [rows, ceil(n * bits / 32)] of signed codes [rows, n]: element i starts at bit i * bits of its row."""
    stream = pack(codes.short() + 2 ** (bits - 1), bits)
    return F.pad(stream, (0, -stream.shape[1] % 4)).view(torch.int32)


def store_codes(layer: PackedLayer) -> tuple[Tensor, Tensor, int, list[str]]:
    """Signed codes int16 [rows, columns], scale float32 [rows, 1 or groups], bits, and what changed.

    code * scale is the layer's weight, bit for bit. Raises ValueError for asymmetric 8-bit grids and levels
    that are not evenly spaced.
    """
    grid, rows = layer.grid, layer.shape[0]
    codes = unpack(layer.codes, grid.bits, layer.shape).short() + grid.low
    scale = layer.scales().flatten(1).expand(rows, -1).contiguous()
    if not grid.uniform:
        raise ValueError(f"its weights have {grid.levels} levels, which the format does not have")
    if not grid.zero.is_integer():
        return (
            2 * codes + 1,
            scale / 2,
            4,
            ["half-integer 2-bit codes c are stored as 2c + 1 in 4 bits, half the scale"],
        )
    if grid.symmetric:
        return codes, scale, grid.bits, []
    if grid.bits == 8:
        raise ValueError("asymmetric 8-bit weights less their zero need 9 bits, and the format has 8")
    zero = layer.zero.flatten(1).expand(rows, -1).repeat_interleave(layer.shape[1] // scale.shape[1], 1)
    return codes - zero, scale, grid.bits + 1, ["asymmetric weights are stored as code - zero, with one bit more"]


def store_input(layer: PackedLayer, quantizer: Quantizer, sequence: bool) -> Stored:
    """The scheme of a layer's inputs [..., columns]; `sequence`: they always are [batch, tokens, columns].

    Raises ValueError for levels that the format does not have, and for a scale that the model's dtype does not hold.
    """
    columns = layer.shape[1]
    grid, ranges = quantizer.grid, quantizer.ranges
    if grid.levels != "integer":
        raise ValueError(f"its inputs have {grid.levels} levels, and the format has integer ones only")
    scheme: dict[str, Any] = {"num_bits": grid.bits, "type": "int", "symmetric": grid.symmetric}
    if ranges.static:
        scale, zero = ranges(torch.empty(0), grid)
        held, rounded = store_scales(layer, scale.reshape(1).clone())
        if not 0 < float(held) < torch.inf:
            raise ValueError(f"its inputs have the scale {float(scale):.3g}, which {layer.dtype} does not hold")
        tensors = {"input_scale": held}
        if isinstance(zero, Tensor):
            tensors["input_zero_point"] = (zero.reshape(1) - 2 ** (grid.bits - 1)).to(torch.int8)
        return Stored(scheme | {"strategy": "tensor", "dynamic": False}, tensors, rounded)
    theirs = (2**grid.bits - 1) / 2
    rule = (
        f"dynamic symmetric {grid.bits}-bit inputs: stock transformers scales by absmax / {theirs:g} and saturates the "
        f"largest, the student by absmax / {grid.amplitude:g}"
    )
    scheme |= {"dynamic": True}
    if sequence and grid.per == "token":
        scheme |= {"strategy": "token"}
    else:
        scheme |= {"strategy": "group", "group_size": columns if grid.per == "token" else grid.per}
    return Stored(scheme, {}, [rule] if grid.symmetric else [])


def weights_scheme(grid: Grid, bits: int) -> dict[str, Any]:
    """The scheme of weights on `grid` that are stored in as many bits."""
    grouped = isinstance(grid.per, int)
    strategy = {"strategy": "group", "group_size": grid.per} if grouped else {"strategy": "channel"}
    return {"num_bits": bits, "type": "int", "symmetric": True, "dynamic": False, **strategy}


def store_scales(layer: PackedLayer, scale: Tensor) -> tuple[Tensor, list[str]]:
    """Scales in the model's dtype, and what that changes."""
    held = scale.to(layer.dtype)
    if torch.equal(held.to(scale.dtype), scale):
        return held, []
    return held, [f"scales are rounded to {layer.dtype}: the stock loader holds them in the model's dtype"]


def store_table(layer: PackedLayer) -> Stored:
    """A token table in the format, a byte a code. Raises ValueError as `store_codes` does."""
    codes, scale, bits, changed = store_codes(layer)
    held, rounded = store_scales(layer, scale)
    scheme = {"weights": weights_scheme(layer.grid, bits), "input_activations": None, "format": BYTES}
    return Stored(scheme, {"weight": codes.to(torch.int8), "weight_scale": held}, changed + rounded)


def store(layer: PackedLayer, sequence: bool) -> Stored:
    """A linear layer in the format; `sequence` as in `store_input`. Raises ValueError for what it cannot express."""
    owner: Any = layer if layer.table is None else layer.table
    codes, scale, bits, changed = store_codes(owner)
    held, rounded = store_scales(layer, scale)
    weights, grouped = weights_scheme(owner.grid, bits), isinstance(owner.grid.per, int)
    tensors, scheme, changed = {"weight_scale": held}, None, changed + rounded
    if layer.input_quantizer is not None:
        inputs = store_input(layer, layer.input_quantizer, sequence)
        tensors, scheme, changed = tensors | inputs.tensors, inputs.scheme, changed + inputs.changed
    # At 8 bits both take a byte; vLLM's own int8 kernels read this one.
    whole = bits == 8 and not grouped and scheme is not None and scheme["num_bits"] == 8
    if whole:
        tensors |= {"weight": codes.to(torch.int8)}
    else:
        tensors |= {"weight_packed": to_int32(codes, bits), "weight_shape": torch.tensor(layer.shape)}
    layout = BYTES if whole else PACKED
    return Stored({"weights": weights, "input_activations": scheme, "format": layout}, tensors, changed)
