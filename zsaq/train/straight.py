"""Learned rounding, block by block: latent weights and scales move so that each block answers as the teacher's does,
always measured on what they are rounded to (straight through).

What EfficientQAT does first (Chen et al. 2024, arXiv 2407.11062, sec. 3.2), here from GPTQ's rounding on. Soft bits
(`zsaq.train.reconstruction`) from there ended further from the teacher than GPTQ alone in 40 steps (recipes/LOG.md).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar, final

import torch
from torch import Tensor, nn

from zsaq.quant.bounds import TINY
from zsaq.quant.layers import QuantEmbedding, QuantLayer, quant_layers
from zsaq.train.calls import Args, Calls, even
from zsaq.train.chain import Chain, beside, twin_of
from zsaq.train.fallback import Fallback
from zsaq.train.logging import StepLog
from zsaq.train.loop import Loop
from zsaq.train.optim import NotFinite, keeping
from zsaq.train.pair import Batch
from zsaq.train.randomness import generator
from zsaq.train.stages import Stage
from zsaq.train.stages import stage as stage_of

Model = TypeVar("Model", bound=nn.Module)
First = Callable[[nn.Module, str, Sequence[Args], Sequence[Tensor | None]], object]
BUDGET = 8 * 2**30  # bytes of a block's states that may lie on the accelerator


@final
@dataclass(frozen=True)
class Recipe:
    """`steps` of Adam on `batch_size` samples, whose rate falls to 0 from `lr` of the mean distance between levels."""

    steps: int
    batch_size: int
    lr: float


def learn_blocks(
    student: Model, teacher: nn.Module, batches: Sequence[Batch], blocks: Sequence[tuple[str, nn.Module]],
    recipe: Recipe, *, first: First, seed: int = 0, loop: Loop | None = None, stage: str = "reconstruct",
) -> Model:  # fmt: skip
    """Learn the rounding of `blocks` (name, module) of `student`, in forward order, in place; returns it.

    Each learns on the states that the student's blocks before it leave, which are done, for the answers of its twin of
    the teacher on the teacher's states: the mean over positions of the squares' sum over channels. `first(block, name,
    calls, masks)` is done to it before, on its calls and the positions of each that count; on what that leaves it falls
    back if it ends no nearer. Token tables, norms, biases and ranges of inputs stay. With several processes all do the
    same. Memory: the states of all batches before and behind one block, of both models. Raises ValueError for blocks
    that are not reached, NotFinite, which holds the student, for a loss that is not.
    """
    loop, batches, draw = loop or Loop(), even(batches), generator(seed)
    device = loop.accelerator.device
    student.to(device).eval()
    teacher.to(device).eval().requires_grad_(False)
    chunks = [{key: value.to(device) for key, value in batch.items()} for batch in batches]
    names = [name for name, _ in blocks]
    total = recipe.steps * len(blocks)
    with keeping(student), StepLog(loop.accelerator, stage, total, loop.folder, loop.every) as log:
        whole = Chain(teacher, names, chunks, device=device, last=True)
        own = Chain(student, names, chunks, like=whole, device=device)
        for number, name in enumerate(names):
            block = student.get_submodule(name)
            with stage_of(f"{stage}, block {name}", block=block, log=log) as at:
                if not at.todo:
                    continue
                with torch.no_grad():
                    first(block, name, own.calls(number), own.masks)
                calls = beside(own, twin_of(whole, number), number, BUDGET, device)
                for step, error in learned(block, name, calls, recipe, draw, at):
                    tell(log, loop.every, number * recipe.steps, step, error, number + 1)
    return student


def tell(log: StepLog, every: int, before: int, step: int, error: Tensor, block: int) -> None:
    """A line of progress now and then."""
    if (before + step) % every == 0 or step == 1:
        log.write(before + step, {"block": block, "error": error.item()})


def learned(
    block: nn.Module, name: str, calls: Calls, recipe: Recipe, draw: torch.Generator, at: Stage
) -> Iterator[tuple[int, Tensor]]:
    """Steps of one block, each its number and its error; `draw` chooses the samples. Raises NotFinite at the end."""
    layers = [layer for _, layer in quant_layers(block) if not isinstance(layer, QuantEmbedding)]
    wanted = [(parameter, parameter.requires_grad) for parameter in block.parameters()]
    block.requires_grad_(False)
    groups = [group for layer in layers for group in groups_of(layer, recipe.lr)]
    parameters = [parameter.requires_grad_(True) for group in groups for parameter in group["params"]]
    optimizer, rates = torch.optim.Adam(groups, betas=(0.9, 0.95)), [group["lr"] for group in groups]
    device, error = parameters[0].device, torch.zeros(())
    try:
        fallback = Fallback(name, parameters, partial(calls.missed, block, recipe.batch_size, device))
        for step in at.steps(recipe.steps, optimizer=optimizer):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * (1 - (step - 1) / recipe.steps)
            rows = torch.randperm(len(calls.x), generator=draw)[: recipe.batch_size].to(calls.x.device)
            seen, y = (states[rows].to(device) for states in (calls.seen, calls.y))
            with torch.enable_grad():
                error = calls.error(calls.run(block, rows, seen).float() - y, rows)
                grads = torch.autograd.grad(error, parameters, allow_unused=True)
            for parameter, grad in zip(parameters, grads, strict=True):
                parameter.grad = grad
            optimizer.step()
            yield step, error.detach()
        if not math.isfinite(error.item()):
            raise NotFinite(f"the error of block {name} is not finite: lower lr, or look at the batches")
        fallback.settle()
    finally:
        for parameter, flag in wanted:
            parameter.grad = None
            parameter.requires_grad_(flag)


def groups_of(layer: QuantLayer, lr: float) -> list[dict]:
    """The layer's latent weight, whose rate counts in its own steps of the grid, and its scale, where that is learned,
    which moves relatively as fast (`zsaq.quant.layers.parameter_groups`)."""
    scale = layer.weight_quantizer.codes(layer.rows().flatten(1))[1].abs().mean()
    rate, ranges = lr * float(scale) * layer.weight_quantizer.grid.step, layer.weight_quantizer.ranges
    found = [{"params": [layer.weight], "lr": rate}]
    if (trained := ranges.trained()) is not None:
        size = layer.weight.detach().square().mean().sqrt().clamp_min(TINY)
        found.append({"params": [trained], "lr": rate * min(1.0, float(scale / size))})
    return found
