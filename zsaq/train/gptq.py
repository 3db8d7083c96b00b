"""GPTQ's rounding, without a step of training: column by column, the error of what was rounded moves into the
columns that were not yet, as far as the layer's inputs tell that it cancels there.

GPTQ (Frantar et al. 2022, arXiv 2210.17323), on whatever batches are given: a generator's text, random tokens.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar, cast, final

import torch
from torch import Tensor, nn

from zsaq.quant.codes import groups, nearby, round_to_grid, values_of
from zsaq.quant.config import Grid
from zsaq.quant.layers import QuantConv1D, QuantExpertLinear, QuantLayer, QuantLinear, quant_layers
from zsaq.quant.quantizer import Quantizer
from zsaq.train.calls import Reached
from zsaq.train.chain import Args, Chain
from zsaq.train.logging import StepLog
from zsaq.train.loop import Loop
from zsaq.train.optim import NotFinite, keeping
from zsaq.train.pair import Batch
from zsaq.train.stages import stage as stage_of

Model = TypeVar("Model", bound=nn.Module)
COLUMNS = 128  # that are rounded before those behind them hear of it
NEAR = 0.49  # of a step: where a latent weight is still rounded to its level


@torch.no_grad()
def gptq(
    student: Model, batches: Iterable[Batch], blocks: Sequence[tuple[str, nn.Module]], *, damping: float = 0.01,
    loop: Loop | None = None, stage: str = "gptq",
) -> Model:  # fmt: skip
    """Round the weights in `blocks` of `student` anew, in place, so that each layer's answers change least; returns it.

    `blocks`, (name, module) in forward order: their Linear and Conv1D layers are rounded in the order in which they are
    called, each on the inputs that the layers rounded before leave it, quantized as its own are; fused experts, each of
    which sees few of the inputs, stay rounded to nearest. A latent weight becomes what it was when its column's turn
    came, so that training goes on from there, but no further than NEAR steps from the level that it is rounded to.
    Ranges that were searched are searched anew, for what an error of each column costs (`Factor.cost`). Biases and all
    else stay. `damping` is the share of the inputs' mean square that is added to each of theirs. Positions that
    "attention_mask" leaves out do not count. `loop` gives device, folder and trackers, which hear each block's "error",
    the mean over its layers of ||(w - q) x||^2 / ||w x||^2; several processes each bring batches of their own, and all
    end with the same weights. Cost: about four passes of the student over the batches (`Chain`; where its blocks are no
    chain, half a pass more for each), and d^3 for inputs of d features; memory: the states before one block, and d^2.

    Raises ValueError, with no weight changed, if there are no batches, if a block is unknown or holds no quantized
    layer, for a convolution and for ranges that are not kept (min-max weights would take another scale afterwards);
    and, with the layers before rounded, if one is not reached and if its static input range was not calibrated;
    NotFinite, which holds the student likewise, if its inputs are not finite.
    """
    loop = loop or Loop()
    chunks = [{k: v.to(loop.accelerator.device) for k, v in batch.items()} for batch in batches]
    if not chunks or not 0 < damping < torch.inf:
        raise ValueError(f"damping is {damping!r}, with {len(chunks)} batches; give a positive number and a batch")
    masks = [batch.get("attention_mask") for batch in chunks]
    student.to(loop.accelerator.device).eval()
    layers = {name: _layers(student, name) for name, _ in blocks}
    with (
        keeping(student),
        StepLog(loop.accelerator, stage, len(blocks), loop.folder, every=1) as log,
        stage_of(stage, student=student, log=log) as at,
    ):
        chain = Chain(student, list(layers), chunks)
        for number in at.steps(len(layers)):
            name, left = list(layers.items())[number - 1]
            errors = round_block(student.get_submodule(name), name, left, chain.calls(number - 1), masks, damping, loop)
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
        first, total = _inputs(block, left, calls, masks)
        if loop.accelerator.num_processes > 1:
            total = cast(Tensor, loop.accelerator.reduce(total, "sum"))
        if not first:
            raise ValueError(f"{name}: {list(left)} are not reached by a forward pass; leave them unquantized")
        if not total.isfinite().all():
            raise NotFinite(f"the inputs of {name}.{first[0]} are not finite on these batches; look at them")
        layers = [left.pop(each) for each in first]
        whole = [float((w @ total).mul_(w).sum()) for w in (layer.rows().double() for layer in layers)]
        factor = Factor.of(total, damping)
        del total
        for layer, norm in zip(layers, whole, strict=True):
            rows = layer.rows()
            weigh(layer.weight_quantizer, rows, factor.cost)
            scale, zero, grid = _grid_of(layer)
            q, latent, miss = gptq_columns(rows, factor, scale, zero, grid)
            latent = nearby(latent, q, scale.repeat_interleave(rows.shape[1] // scale.shape[1], 1), grid, NEAR)
            layer.weight.copy_(latent.T if layer.columns_first else latent)
            errors.append(miss / max(norm, 1e-30))
    return errors


def weigh(quantizer: Quantizer, rows: Tensor, cost: Tensor) -> None:
    """Have ranges that were searched searched anew, for squared errors of columns that cost so much each, [d]."""
    share, grid = (cost / cost.mean().clamp_min(torch.finfo(cost.dtype).tiny)).to(rows.dtype), quantizer.grid
    quantizer.ranges.weigh(groups(rows, grid), grid, groups(share.expand_as(rows), grid))


@final
@dataclass(frozen=True)
class Factor:
    """Of inputs x of a layer: `order` [d], columns with the largest inputs first; `upper` [d, d], with U^T U = H^-1 in
    that order, where H is the sum of x x^T with `added` on its diagonal."""

    order: Tensor
    upper: Tensor
    added: float

    @property
    def cost(self) -> Tensor:
        """1 / U_ii^2 of every column, [d] as they lie: what the square of its error adds to the layer's, after the
        columns behind it have taken what they can."""
        return self.upper.diagonal().square().reciprocal()[self.order.argsort()]

    @classmethod
    def of(cls, hessian: Tensor, damping: float, dtype: torch.dtype = torch.float32) -> "Factor":
        """Of the sum of x x^T, [d, d] float64, which is overwritten: d^2 numbers are what takes the memory. `damping`
        is the share of its mean square that is added to each; `dtype`: of `upper`."""
        order = hessian.diagonal().argsort(descending=True)
        h = hessian.copy_(hessian[order[:, None], order])
        added = damping * h.diagonal().mean().clamp_min(torch.finfo(h.dtype).tiny)
        h.diagonal().add_(added)
        torch.linalg.cholesky(h, out=h)
        torch.cholesky_inverse(h, out=h)
        return cls(order, torch.linalg.cholesky(h, upper=True, out=h).to(dtype), float(added))


def gptq_columns(
    weight: Tensor, factor: Factor, scale: Tensor, zero: Tensor, grid: Grid
) -> tuple[Tensor, Tensor, float]:
    """The weight on its grid, what each column was when its turn came, and the sum of ||(w - q) x||^2.

    `weight`: rows [out, d] float; `scale`, `zero` [out, groups] of columns that lie side by side. Column i leaves the
    error (w_i - q_i) / U_ii, which times U_ij is taken from every column j behind it (eq. 3, with the algorithm's lazy
    blocks).
    """
    order, u, group = factor.order, factor.upper, (factor.order // (weight.shape[1] // scale.shape[1])).tolist()
    w, miss = weight[:, order], 0.0
    rounded = torch.empty_like(w)
    scales, zeros = scale.T.contiguous(), zero.T.contiguous()
    for start in range(0, len(u), COLUMNS):
        stop = min(start + COLUMNS, len(u))
        now = w[:, start:stop].T.contiguous()  # columns as rows: what is read together lies together
        near, errors = torch.empty_like(now), torch.empty_like(now)
        for i in range(stop - start):
            at, step, offset = start + i, scales[group[start + i]], zeros[group[start + i]]
            near[i] = values_of(round_to_grid(now[i], step, offset, grid), offset, grid) * step
            errors[i] = (now[i] - near[i]) / u[at, at]
            now[i + 1 :] -= errors[i] * u[at, at + 1 : stop, None]
        w[:, start:stop], rounded[:, start:stop] = now.T, near.T
        w[:, stop:] -= errors.T.contiguous() @ u[start:stop, stop:]
        miss += float(errors.double().square().sum())
    back = order.argsort()
    rounded, latent = rounded[:, back], w[:, back]
    return rounded, latent, max(0.0, miss - factor.added * float((weight - rounded).double().square().sum()))


def _inputs(
    block: nn.Module, left: dict[str, QuantLayer], calls: Sequence[Args], masks: Sequence[Tensor | None]
) -> tuple[list[str], Tensor]:
    """Which of the layers `left` are called first and with the same tensor, and its sum of x x^T, [d, d] float64."""
    first: list[tuple[str, Tensor]] = []
    hessian = torch.zeros(0)

    def reached(name: str):
        def hook(module: nn.Module, args: tuple) -> None:
            if first and args[0] is not first[0][1]:
                raise Reached
            first.append((name, args[0]))

        return hook

    handles = [layer.register_forward_pre_hook(reached(name)) for name, layer in left.items()]
    try:
        for number, ((args, kwargs), mask) in enumerate(zip(calls, masks, strict=True)):
            first.clear()
            with suppress(Reached):
                block(*args, **kwargs)
            if not first:
                return [], hessian
            x = left[first[0][0]].inputs(first[0][1]).float()
            x = x[mask.bool().to(x.device)] if mask is not None and mask.shape == x.shape[:-1] else x.flatten(0, -2)
            moment = x.T @ x
            hessian = hessian.add_(moment) if number else moment.double()
    finally:
        for handle in handles:
            handle.remove()
    return [name for name, _ in first], hessian


def _grid_of(layer: QuantLayer) -> tuple[Tensor, Tensor, Grid]:
    """Scale and zero of the layer's rows, [out, groups], and their grid."""
    quantizer, rows = layer.weight_quantizer, layer.rows()
    view = groups(rows, quantizer.grid)
    scale, zero = quantizer.ranges(view, quantizer.grid)
    zero = torch.as_tensor(zero, dtype=scale.dtype, device=scale.device).expand_as(scale)
    several = scale.ndim == 3
    every = [part[..., 0] if several else part.expand(len(rows), 1) for part in (scale, zero)]
    return every[0], every[1], quantizer.grid


def _layers(student: nn.Module, name: str) -> dict[str, QuantLayer]:
    """The quantized layers of a block by their names in it, all of them fit for GPTQ."""
    try:
        found = quant_layers(student.get_submodule(name))
        layers = {each: layer for each, layer in found if not isinstance(layer, QuantExpertLinear)}
    except AttributeError:
        raise ValueError(f"the student has no module {name!r}; give blocks by the names that it has") from None
    if not layers:
        raise ValueError(f"the block {name} holds no quantized layer; give the blocks that the config quantizes")
    for each, layer in layers.items():
        where = f"{name}.{each}"
        if not isinstance(layer, QuantLinear | QuantConv1D):
            raise ValueError(f"{where} is a {type(layer).__name__}; GPTQ rounds Linear and Conv1D only")
        if not layer.weight_quantizer.ranges.kept:
            raise ValueError(
                f"{where} takes its weight's range anew from what it holds; quantize it with ranges='searched', or "
                "'learned'"
            )
        if layer.weight.dtype != torch.float32:
            raise ValueError(f"{where} holds {layer.weight.dtype}, which would not keep what is rounded; use .float()")
    return layers
