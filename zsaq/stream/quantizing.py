"""A student made from the disk to the disk: one block after the other is read, rounded or compensated, and written.

The codes are those that the same method gives in memory, to the bit: blocks are rounded in the same order on the same
inputs, each of which the block before has answered.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal, get_args

import torch
from torch import Tensor, nn

from zsaq.language.nearness import Nearness
from zsaq.language.sam_sga import with_learned_ranges
from zsaq.quant.adapter import packed_tensors
from zsaq.quant.config import QuantConfig
from zsaq.quant.guard import NOTE, decoys
from zsaq.quant.layers import Conv1D, QuantLayer, quant_layers, swap
from zsaq.quant.plan import Plan, make_plan
from zsaq.stream.passing import ended, ends, packed_matrix, read_on_call
from zsaq.stream.shards import Shards
from zsaq.stream.skeleton import IN_MEMORY, Skeleton
from zsaq.train.calls import even
from zsaq.train.chain import Chain, beside, twin_of
from zsaq.train.gptq import round_block
from zsaq.train.logging import StepLog
from zsaq.train.loop import Loop
from zsaq.train.pair import Batch
from zsaq.train.randomness import generator
from zsaq.train.stages import stage as stage_of
from zsaq.train.straight import BUDGET, Recipe, learned, tell
from zsaq.trimming import map_large, trim

Rounding = Literal["rtn", "gptq", "reconstruct"]
ROUNDINGS: Final[tuple[Rounding, ...]] = get_args(Rounding)
DAMPING: Final = 0.01
TOKENS: Final = 32  # whose logits are compared at once


def check_ranges(config: QuantConfig) -> None:
    """Raises ValueError for static ranges."""
    if config.static:
        raise ValueError(
            "static ranges of inputs are those of a whole pass: give each token a scale, as in w4a8 (no s), or "
            f"{IN_MEMORY}"
        )


def planned(skeleton: Skeleton, config: QuantConfig) -> Plan:
    """What is decided about each module. Raises ValueError as `make_plan` does, and for one that stands in no block."""
    plan, inside = make_plan(skeleton.model, config), tuple(f"{name}." for name in skeleton.blocks)
    for name in plan.chosen:
        if name not in (skeleton.table, skeleton.head) and not name.startswith(inside):
            raise ValueError(f"{name} stands in no block: leave it in floats by a rule, or {IN_MEMORY}")
    return plan


@torch.no_grad()
def quantize_files(
    source: Path, target: Path, config: QuantConfig, *, rounding: Rounding = "gptq", batches: Sequence[Batch] = (),
    held: Batch | None = None, recipe: Recipe | None = None, seed: int = 0, loop: Loop | None = None,
) -> tuple[Plan, Nearness | None]:  # fmt: skip
    """The student of the float model in the folder `source`, written to the empty folder `target`.

    `rounding`: to nearest, GPTQ's on `batches`, or learned on these from there on, by a `recipe` and random numbers of
    `seed`. `held`: text that teacher and student are compared on
    when all is written. The device of `loop` holds one block. Answers what was decided about the model's modules, and
    how near the student is. Raises ValueError as `Skeleton.of`, `make_plan` and `zsaq.compensate` do, for static
    ranges, and for blocks that are no chain.
    """
    map_large()
    loop = loop or Loop()
    check_ranges(config)
    if rounding != "rtn" and not batches:
        raise ValueError("GPTQ rounds on batches, and there are none: give text, or take rtn")
    assert (rounding == "reconstruct") == (recipe is not None)
    batches = even(batches) if recipe is not None else batches
    skeleton = Skeleton.of(source)
    model = skeleton.model
    plan = planned(skeleton, with_learned_ranges(config) if batches else config)
    dtype = torch.float32 if batches else None  # what is not quantized, as it is saved
    shards = Shards(target)
    shards.add(outside(skeleton, plan, dtype))
    trim()
    table, head = plan.chosen.get(skeleton.table), plan.chosen.get(skeleton.head)
    compared: list[Batch] = [] if held is None else [held]
    device = loop.accelerator.device
    with ends(skeleton), read_on_call(skeleton):
        teacher = [model(**batch, use_cache=False).logits for batch in compared]
        tried = linked(skeleton, [*batches, *compared])
        if recipe is not None:
            whole = Chain(model, skeleton.blocks, batches, like=tried, device=device, last=True)
        else:
            whole = None
    steps, every, draw = (1, 1, None) if recipe is None else (recipe.steps, loop.every, generator(seed))
    with ends(skeleton, table, head, target):
        chains = [
            Chain(model, skeleton.blocks, each, like=tried, device=device, last=each is compared)
            for each in (batches, compared)
            if each
        ]
        with StepLog(loop.accelerator, rounding, steps * len(skeleton.blocks), loop.folder, every) as log:
            for number, name in enumerate(skeleton.blocks):
                block = skeleton.fill(name, torch.float32).to(device)
                twin = None if whole is None else twin_of(whole, number)
                layers = swapped(block, name, plan, searched=not batches)
                errors: list[float] = []
                if batches:
                    calls = chains[0].calls(number)
                    errors = round_block(block, name, layers, calls, chains[0].masks, DAMPING, loop)
                if recipe is not None and twin is not None and draw is not None:
                    calls = beside(chains[0], twin, number, BUDGET, device)
                    with stage_of(name) as at:
                        for step, error in learned(block, name, calls, recipe, draw, at):
                            tell(log, every, number * steps, step, error, number + 1)
                    del twin, calls
                for chain in chains:
                    chain.answered(number)
                trim()
                shards.add(written(skeleton, block, name, dtype))
                skeleton.empty(name)
                trim()
                if recipe is None:
                    log.write(number + 1, {"error": sum(errors) / len(errors)} if errors else {})
        shards.finish()
        if held is None:
            return plan, None
        counts = held.get("attention_mask", torch.ones_like(held["input_ids"])).bool()
        answers = (each[counts].split(TOKENS) for each in (teacher[0], ended(skeleton, chains[-1], held)))
        return plan, Nearness.mean([Nearness.of(*pair) for pair in zip(*answers, strict=True)])


def linked(skeleton: Skeleton, batches: Sequence[Batch]) -> Chain | None:
    """A chain of the blocks over a row of the first of `batches`. Raises ValueError where they do not follow each other
    alone."""
    if not batches:
        return None
    chain = Chain(skeleton.model, skeleton.blocks, [{key: value[:1] for key, value in batches[0].items()}])
    if chain.forms is None:
        raise ValueError(f"the blocks of {type(skeleton.model).__name__} do not follow each other alone: {IN_MEMORY}")
    return chain


def swapped(block: nn.Module, name: str, plan: Plan, searched: bool) -> dict[str, QuantLayer]:
    """The chosen layers of a block, made quantized ones in place, by their names in it. Without `searched` the ranges
    of linear layers are left to GPTQ, which searches them."""
    for path, module in list(block.named_modules(prefix=name)):
        if path in plan.chosen:
            try:
                swap(module, plan.chosen[path], searched or not isinstance(module, nn.Linear | Conv1D))
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
    return dict(quant_layers(block))


def written(skeleton: Skeleton, block: nn.Module, name: str, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """What is saved of a block: packed layers with their decoys, and the rest in `dtype`, by default as it was read."""
    packed = packed_tensors(block, f"{name}.")
    layers = [f"{name}.{each}" for each, _ in quant_layers(block)]
    read = {
        key: value if dtype or key not in skeleton.weights.header else skeleton.weights.tensor(key)
        for key, value in packed.items()
    }
    marks = decoys(layers)
    del marks[NOTE]  # which stands in the first file
    return marks | read


def outside(skeleton: Skeleton, plan: Plan, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """What is saved of all but the blocks."""
    state: dict[str, Tensor] = {}
    layers: list[str] = []
    for name in (skeleton.table, skeleton.head):
        source = skeleton.source(f"{name}.weight")
        if name in plan.tied or (name == skeleton.head and skeleton.tied):
            continue
        config, table = plan.chosen.get(name), name == skeleton.table
        if config is None:
            state[source] = skeleton.weights.tensor(source, dtype)
            continue
        grid = config.embedding if table else config.weight
        assert grid is not None
        packed = packed_matrix(skeleton, source, grid, "searched" if table else config.ranges)
        state |= {f"{name}.{key}": value for key, value in packed.items()}
        layers.append(name)
    head = skeleton.model.get_submodule(skeleton.head)
    if head.bias is not None:
        state[f"{skeleton.head}.bias"] = skeleton.weights.tensor(f"{skeleton.head}.bias", dtype)
    for name, _ in skeleton.outside():
        module = skeleton.fill(name, dtype)
        state |= {f"{name}.{key}": value for key, value in module.state_dict().items() if "." not in key}
        skeleton.empty(name)
    return decoys(layers) | state
