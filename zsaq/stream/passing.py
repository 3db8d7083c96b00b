"""A skeleton that computes: what a pass calls is read from the files when it is called, and let go of behind it."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zsaq.quant.codes import dequantize, groups
from zsaq.quant.config import QuantConfig
from zsaq.quant.grid import Grid
from zsaq.quant.layers import input_quantizer, swap
from zsaq.quant.packed_model import packed_rows
from zsaq.quant.packing import unpack
from zsaq.quant.quantizer import Quantizer
from zsaq.quant.ranges import RANGES
from zsaq.stream.skeleton import Skeleton, put
from zsaq.stream.weights import Weights
from zsaq.train.chain import Chain, instead
from zsaq.train.pair import Batch

ROWS = 4096  # of a table or a head that are in floats at once


@contextmanager
def ends(
    skeleton: Skeleton, table: QuantConfig | None = None, head: QuantConfig | None = None, folder: Path | None = None
) -> Iterator[None]:
    """Inside, all of the model but its blocks computes in float32: the table reads the rows that are looked up, the
    head its own by and by. With `table` and `head` they are those of a student that is quantized so; `folder`: where
    it lies by the time when its head is called."""
    outside = [name for name, _ in skeleton.outside()]
    for name in outside:
        skeleton.fill(name, torch.float32).float()
    modules = [skeleton.model.get_submodule(name) for name in (skeleton.table, skeleton.head)]
    try:
        with instead(modules, [looked_up(skeleton, table), by_rows(skeleton, head, folder)]):
            yield
    finally:
        for name in outside:
            skeleton.empty(name)


@contextmanager
def read_on_call(skeleton: Skeleton) -> Iterator[None]:
    """Inside, each block is read, in float32, when it is called."""

    def reading(name: str) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            block = skeleton.fill(name, torch.float32)
            try:
                return type(block).forward(block, *args, **kwargs)
            finally:
                skeleton.empty(name)

        return forward

    blocks = [skeleton.model.get_submodule(name) for name in skeleton.blocks]
    with instead(blocks, [reading(name) for name in skeleton.blocks]):
        yield


def looked_up(skeleton: Skeleton, config: QuantConfig | None) -> Callable[[Tensor], Tensor]:
    """The forward of the token table on the rows that are looked up alone; with a `config`, rounded."""
    table = skeleton.model.get_submodule(skeleton.table)
    source = f"{skeleton.table}.weight"

    def forward(ids: Tensor) -> Tensor:
        known, place = ids.unique(return_inverse=True)
        part: Any = copy.deepcopy(table).float()
        vars(part).pop("forward", None)
        put(part, "weight", skeleton.weights.rows(source, known.tolist(), torch.float32))
        part.padding_idx = None  # of gradients, and a row of the whole table
        if config is not None:
            swap(part, config)
        return part(place)

    return forward


def by_rows(skeleton: Skeleton, config: QuantConfig | None, folder: Path | None) -> Callable[[Tensor], Tensor]:
    """The forward of the head, some of its rows at a time: of the float model, or, with a `config`, of the student in
    the `folder`."""
    head: Any = skeleton.model.get_submodule(skeleton.head)
    source, bias = skeleton.source(f"{skeleton.head}.weight"), None
    if head.bias is not None:
        bias = skeleton.weights.tensor(f"{skeleton.head}.bias", torch.float32)
    inputs = None if config is None else input_quantizer(head, config)
    grid = None if config is None else config.embedding if skeleton.tied else config.weight
    count, width = head.weight.shape

    owner = skeleton.table if skeleton.tied else skeleton.head
    written = cache(Weights)  # by the time of the first call

    def rows(start: int, stop: int) -> Tensor:
        if config is None or grid is None or folder is None:
            return skeleton.weights.rows(source, slice(start, stop), torch.float32)
        files, part = written(folder), slice(start, stop)
        packed = files.rows(f"{owner}.codes", part)
        codes = unpack(packed, grid.bits, (len(packed), width)).short() + grid.low
        unit = files.tensor(f"{owner}.unit") if f"{owner}.unit" in files.header else None
        part = slice(None) if grid.per == "tensor" else part  # of which there is one scale
        scale = grid.scaling.decode(files.rows(f"{owner}.scale", part), unit)
        return dequantize(codes, scale, grid.zero if grid.symmetric else files.rows(f"{owner}.zero", part), grid)

    def forward(x: Tensor) -> Tensor:
        x = x if inputs is None else inputs(x)
        answer = x.new_empty(*x.shape[:-1], count)
        for start in range(0, count, ROWS):
            stop = min(start + ROWS, count)
            answer[..., start:stop] = F.linear(x, rows(start, stop))
        return answer if bias is None else answer.add_(bias)

    return forward


def packed_matrix(skeleton: Skeleton, source: str, grid: Grid, ranges: str) -> dict[str, Tensor]:
    """A matrix of the files, rounded to nearest and packed, some of its rows at a time: what `packed_rows` makes of it
    whole."""
    count = skeleton.weights.header[source][1][0]
    size = count if grid.per == "tensor" or grid.scaling.united else ROWS
    whole: dict[str, Tensor] = {}
    for start in range(0, count, size):
        rows = skeleton.weights.rows(source, slice(start, start + size), torch.float32)
        for key, part in packed_rows(rows, Quantizer(grid, RANGES[ranges](groups(rows, grid), grid))).items():
            if start == 0:
                whole[key] = part.new_empty(len(part) if len(rows) == count else count, *part.shape[1:])
            whole[key][start : start + len(part)] = part
    return whole


@torch.no_grad()
def ended(skeleton: Skeleton, chain: Chain, batch: Batch) -> Tensor:
    """The logits that the model answers after what the last block of its chain has answered; no block computes."""

    def stub(form: int) -> Callable[..., Any]:
        return lambda *args, **kwargs: (chain.answers[0], *[None] * (form - 1)) if form else chain.answers[0]

    with instead(chain.blocks, [stub(form) for form in chain.forms or ()]):
        return skeleton.model(**batch, use_cache=False).logits
