"""GPTQ's rounding, without a step of training: column by column, the error of what was rounded moves into the
columns that were not yet, as far as the layer's inputs tell that it cancels there.

GPTQ (Frantar et al. 2022, arXiv 2210.17323), on whatever batches are given: a generator's text, random tokens.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from zsaq.quant.layers import QuantConv1D, QuantConv2d, QuantExpertLinear, QuantLayer, QuantLinear, quant_layers
from zsaq.train.calls import Reached, duplicate, positions
from zsaq.train.chain import Args, Chain, as_called, names_of
from zsaq.train.compensation import check_damping, moment, round_layers
from zsaq.train.logging import StepLog, say
from zsaq.train.loop import Loop
from zsaq.train.optim import NotFinite, keeping
from zsaq.train.pair import Batch, first_input, listed
from zsaq.train.stages import stage as stage_of

Model = TypeVar("Model", bound=nn.Module)


@torch.no_grad()
def compensate(
    student: Model, batches: Iterable[Batch], blocks: Sequence[tuple[str, nn.Module]], *, damping: float = 0.01,
    loop: Loop | None = None, stage: str = "gptq",
) -> Model:  # fmt: skip
    """Round the weights in `blocks` of `student` anew, in place, so that each layer's answers change least; returns it.

    `blocks`, (name, module) in any order: their Linear, Conv1D and Conv2d layers are rounded in the order in which they
    are called, each on the inputs that the layers rounded before leave it, quantized as its own are; fused experts,
    each of which sees few of the inputs, stay rounded to nearest. A latent weight becomes what it was when its column's
    turn came, so that training goes on from there, but no further than NEAR steps from the level that it is rounded to.
    Ranges that were searched are searched anew, for what an error of each column costs (`Factor.cost`). Biases and all
    else stay. A layer whose inputs are all zero is rounded to nearest, which is told. `damping` is the share of the
    inputs' mean square that is added to each of theirs. Positions that "attention_mask" leaves out do not count; inputs
    that it does not fit count whole, which is told. `loop` gives device, folder and trackers, which hear each block's
    "error", the mean over its layers of ||(w - q) x||^2 / ||w x||^2; several processes each bring batches of their own,
    and all end with the same weights. Cost: about four passes of the student over the batches (`Chain`; where its
    blocks are no chain, half a pass more for each), and d^3 for inputs of d features; memory: the states before one
    block, and d^2.

    Raises ValueError, with no weight changed, if there are no batches, if a block is unknown, holds no quantized layer
    or is not reached, for layers that share a weight, for padding before a decoder's blocks that read an encoder's
    states too, and for ranges that are not kept (min-max weights would take another scale afterwards); and, with the
    layers before rounded, if a layer is not reached and if its static input range was not calibrated; NotFinite, which
    holds the student likewise, if its inputs are not finite.
    """
    loop = loop or Loop()
    check_damping(damping)
    chunks = [{k: v.to(loop.accelerator.device) for k, v in batch.items()} for batch in listed(batches)]
    student.to(loop.accelerator.device).eval()
    layers = {name: layers_of(student, name) for name in names_of(blocks)}
    check_apart({f"{name}.{each}".rstrip("."): layer for name, some in layers.items() for each, layer in some.items()})
    with (
        keeping(student),
        StepLog(loop.accelerator, stage, len(blocks), loop.folder, every=1) as log,
        stage_of(stage, student=student, log=log) as at,
    ):
        names = as_called(student, list(layers), chunks[0])
        chain = Chain(student, names, chunks)
        for number in at.steps(len(layers)):
            name = names[number - 1]
            calls = chain.calls(number - 1)
            errors = round_block(student.get_submodule(name), name, layers[name], calls, chain.masks, damping, loop)
            log.write(number, {"error": sum(errors) / len(errors)})
            chain.answered(number - 1)
    return student


def round_block(
    block: nn.Module, name: str, left: dict[str, QuantLayer], calls: Sequence[Args], masks: Sequence[Tensor | None],
    damping: float, loop: Loop,
) -> list[float]:  # fmt: skip
    """Round the layers `left` of one block, in place, in the order of their calls; the error of each, see `gptq`.
    `masks`: which positions count, for each of the calls."""
    errors, left = [], dict(left)
    while left:
        first, total, unfit = _inputs(block, left, calls, masks)
        if loop.accelerator.num_processes > 1:
            total = cast(Tensor, loop.accelerator.reduce(total, "sum"))
        if not first:
            globs = ", ".join(f'("*.{each}", None)' for each in left)
            raise ValueError(
                f"{name}: {list(left)} are not reached by a forward pass: leave them in floats, by rules=({globs},) of "
                "the QuantConfig, or round to nearest (rtn)"
            )
        if not total.isfinite().all():
            at = f"{name}.{first[0]}".rstrip(".")  # a block may be a layer
            raise NotFinite(f"the inputs of {at} are not finite on these batches; look at them")
        if loop.accelerator.is_main_process and unfit:
            say(f"{name}: {unfit}, which attention_mask fits in no way: all that is there counts, padding too")
        if loop.accelerator.is_main_process and not total.any():
            say(f"{name}: the inputs of {', '.join(first) or name} are all zero on these batches: rounded to nearest")
        layers = [left.pop(each) for each in first]
        errors += round_layers(layers, total, damping)
        del total
    return errors


def _inputs(
    block: nn.Module, left: dict[str, QuantLayer], calls: Sequence[Args], masks: Sequence[Tensor | None]
) -> tuple[list[str], Tensor, str]:
    """Which of the layers `left` are called first and with the same tensor, its `moment`, [groups, d, d] float64 (each
    convolution unfolds it in its own way), and, where a mask leaves out positions that it has not, what it is."""
    first, unfit = list[tuple[str, Tensor]](), ""
    hessian = torch.zeros(0)

    def reached(name: str):
        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            x = first_input(args, kwargs)
            if first and (x is not first[0][1] or isinstance(module, QuantConv2d)):
                raise Reached
            first.append((name, x))

        return hook

    handles = [layer.register_forward_pre_hook(reached(name), with_kwargs=True) for name, layer in left.items()]
    try:
        for number, (call, mask) in enumerate(zip(calls, masks, strict=True)):
            first.clear()
            args, kwargs = duplicate(call)
            with suppress(Reached):
                block(*args, **kwargs)
            if not first:
                return [], hessian, unfit
            x = left[first[0][0]].inputs(first[0][1]).float()
            if (counts := positions(mask, x)) is not None:
                x = x[counts.to(x.device)]
            elif mask is not None and mask.ndim == 2 and not mask.all():
                unfit = f"{first[0][0]} reads {list(x.shape)}"
            total = moment(left[first[0][0]], x)
            hessian = hessian.add_(total) if number else total.double()
    finally:
        for handle in handles:
            handle.remove()
    return [name for name, _ in first], hessian, unfit


def layers_of(student: nn.Module, name: str) -> dict[str, QuantLayer]:
    """The quantized layers of a block by their names in it, all of them fit for GPTQ."""
    try:
        found = quant_layers(student.get_submodule(name))
        layers = {each: layer for each, layer in found if not isinstance(layer, QuantExpertLinear)}
    except AttributeError:
        raise ValueError(f"the student has no module {name!r}; give blocks by the names that it has") from None
    if not layers:
        raise ValueError(f"the block {name} holds no quantized layer; give the blocks that the config quantizes")
    for each, layer in layers.items():
        check_fit(f"{name}.{each}".rstrip("."), layer)
    return layers


def check_apart(layers: Mapping[str, nn.Module]) -> None:
    """Raises ValueError for different layers of one weight, which the last of them would round for itself."""
    owners = dict[int, tuple[str, nn.Module]]()
    for name, layer in layers.items():
        owner, first = owners.setdefault(id(layer.weight), (name, layer))
        if first is not layer:
            raise ValueError(
                f"{owner} and {name} share a weight, which cannot be rounded for both: give each a copy, leave them in "
                f'floats by rules=(("{owner}", None), ("{name}", None)) of the QuantConfig, or take a method that '
                "rounds to nearest"
            )


def check_float32(layers: Mapping[str, nn.Module]) -> None:
    """Raises ValueError for weights of another dtype than what is learned needs."""
    if rough := [name for name, layer in layers.items() if layer.weight.dtype != torch.float32]:
        raise ValueError(f"the weights of {rough[:4]} are not float32 and would not hold what is learned; use .float()")


def check_fit(name: str, layer: QuantLayer) -> None:
    """Raises ValueError for a layer whose weight cannot be compensated."""
    if not isinstance(layer, QuantLinear | QuantConv1D | QuantConv2d):
        raise ValueError(f"{name} is a {type(layer).__name__}; GPTQ rounds Linear, Conv1D and Conv2d only")
    if not layer.weight_quantizer.ranges.kept:
        raise ValueError(
            f"{name} takes its weight's range anew from what it holds; quantize it with ranges='searched', or 'learned'"
        )
    if layer.weight.dtype != torch.float32:
        raise ValueError(f"{name} holds {layer.weight.dtype}, which would not keep what is rounded; use .float()")
