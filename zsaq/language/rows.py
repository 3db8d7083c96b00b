"""Rows of a table beside those of the base that it was trained on from: by how much of their length each turned."""

from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor, nn

from zsaq.quant.codes import dequantize, groups, round_to_grid
from zsaq.quant.grid import Grid
from zsaq.quant.layers import QuantEmbedding
from zsaq.quant.packed import PackedEmbedding

FINEST: Final = 2e-5  # what steps of weight decay in float32 leave of rounding, at worst
WINDOW: Final = 20  # the densest so many-th of the rows are those that decay alone has touched


@final
@dataclass(frozen=True, eq=False)
class Rows:
    """`movement` [N]: the part of each row across its base, in lengths of that; a row that merely shrank did not move.
    `kept` [N]: how much of the base's row is in it, 1 for all.

    `noise`: the movement below which rows are alike, by what holds their numbers; `still`: what rounding alone reaches.
    """

    movement: Tensor
    kept: Tensor
    noise: float
    still: float

    @classmethod
    @torch.no_grad()
    def of(cls, table: nn.Embedding, origin: nn.Embedding) -> "Rows":
        """Of the rows that both have. The base's are shrunk by the weight decay of those that were never seen, and then
        held as the table's are: on its grid, with its scales, or in its dtype."""
        count = min(table.num_embeddings, origin.num_embeddings)
        own = values(table)[:count]
        near = values(origin)[:count].to(own.device)
        length = near.norm(dim=1)
        length = length.clamp_min(float(length.mean()) / 100 or 1.0)
        coded = isinstance(table, PackedEmbedding | QuantEmbedding)
        held = on_grid(table, near) if coded else near
        near = decay(inner(own, held) / inner(held, held).clamp_min(1e-30)) * near
        if coded:
            near = on_grid(table, near)
            noise = float((steps(table)[:count].to(own.device) / length).median())
        else:
            dtype = coarsest(own)
            near = near.to(dtype).float()
            noise = max(torch.finfo(dtype).eps, torch.finfo(coarsest(values(origin))).eps, FINEST) / 8
        kept = inner(own, near) / length**2
        across = own - (inner(own, near) / inner(near, near).clamp_min(1e-30))[:, None] * near
        return cls((across.norm(dim=1) / length).cpu(), kept.cpu(), noise, noise * (2 if coded else 8))


def values(table: nn.Embedding) -> Tensor:
    """The numbers that a forward pass reads [N, d] float32."""
    if isinstance(table, PackedEmbedding):
        return (table if table.table is None else table.table).unpacked(torch.float32)
    if isinstance(table, QuantEmbedding):
        return table.dequantized().detach().float()
    return table.weight.detach().float()


def on_grid(table: PackedEmbedding | QuantEmbedding, rows: Tensor) -> Tensor:
    """The rows as the table would hold them."""
    grid, scale, zero = grid_of(table)
    scale, zero = scale[: len(rows)], zero[: len(rows)] if isinstance(zero, Tensor) else zero
    codes = round_to_grid(groups(rows, grid), scale, zero, grid).reshape(rows.shape)
    return dequantize(codes, scale, zero, grid).float()


def steps(table: PackedEmbedding | QuantEmbedding) -> Tensor:
    """The step of each row's grid [N], the mean of its groups'."""
    return grid_of(table)[1].flatten(1).mean(1)


def grid_of(table: PackedEmbedding | QuantEmbedding) -> tuple[Grid, Tensor, Tensor | float]:
    """The grid, and scale and zero of its rows."""
    if isinstance(table, PackedEmbedding):
        owner = table if table.table is None else table.table
        return owner.grid, owner.scales(), owner.zeros()
    _, scale, zero = table.weight_quantizer.codes(table.weight)
    return table.weight_quantizer.grid, scale, zero


def inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1)


def decay(kept: Tensor) -> float:
    """What most rows that fall together kept of their base: the middle of the densest few."""
    ordered = kept.sort().values
    few = max(1, len(ordered) // WINDOW)
    if len(ordered) <= few:
        return 1.0
    return float(ordered[int((ordered[few:] - ordered[:-few]).argmin()) + few // 2])


def coarsest(rows: Tensor) -> torch.dtype:
    """The dtype that the numbers were stored in: the coarsest that holds them all."""
    return next((t for t in (torch.bfloat16, torch.float16) if torch.equal(rows.to(t).float(), rows)), torch.float32)
