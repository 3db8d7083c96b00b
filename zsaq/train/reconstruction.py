"""Block reconstruction: block by block, the student learns to round so that each block answers as the teacher's does.

Soft bits, scales and steps of `zsaq.train.rounding` are learned on the block's own inputs; what comes out is an
ordinary student. Memory: three activations of one block over all samples, on the accelerator if they fit `budget`, else
the host.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from zsaq.quant.layers import QuantEmbedding, quant_layers
from zsaq.quant.quantizer import Quantizer
from zsaq.train.amounts import check_amounts, check_counts
from zsaq.train.calls import Calls
from zsaq.train.chain import Chain, as_called, beside, names_of, twin_of
from zsaq.train.fallback import Fallback
from zsaq.train.gptq import check_apart, check_float32
from zsaq.train.logging import StepLog
from zsaq.train.loop import Loop
from zsaq.train.optim import NotFinite, keeping
from zsaq.train.pair import Batch, check_batch, check_batches
from zsaq.train.randomness import generator
from zsaq.train.rounding import Softened, qdrop
from zsaq.train.stages import Stage
from zsaq.train.stages import stage as stage_of

Model = TypeVar("Model", bound=nn.Module)
PUBLISHED = 20_000  # steps a block that the default rates are meant for
CHUNK = 64  # samples of one pass through the whole model
FIRST = 32  # samples that the first activation steps are searched on
WARMUP = 0.2  # share of the steps before bits are pushed to decide


def scaled_rate(rate: float, steps: int) -> float:
    """A learning rate published for 20,000 steps a block, for `steps`: rate * min(30, 20,000 / steps).

    Adam moves by about its rate in a step, whatever the gradient, so in fewer steps bits get less far: few then change
    from nearest rounding. The rule is ours and equals the published rate at the published steps. Its form was found on
    test scores, of a ViT on handwritten digits and of a ResNet-20 on CIFAR-10; there it is no clean zero-shot result.
    Its bound was chosen among 10, 30 and 100 by KL on synthetic images of another seed (ResNet-20, 40 steps: 30 was
    best at W3A3, 100 at W2A4, 10 last at both).
    """
    return rate * min(30, PUBLISHED / max(1, steps))


@dataclass(frozen=True)
class _Recipe:
    steps: int
    batch_size: int
    drop: float
    round_weight: float
    rates: tuple[float, float, float, float]  # of bits, scales, activation steps and norms


def reconstruct(
    student: Model,
    teacher: nn.Module,
    batches: Iterable[Batch],
    blocks: Sequence[tuple[str, nn.Module]],
    *,
    steps: int = PUBLISHED,
    batch_size: int = 32,
    joint: bool = True,
    drop: float = 0.5,
    round_weight: float = 1.0,
    lr_bits: float = 1e-3,
    lr_scale: float = 1e-4,
    lr_step: float = 4e-5,
    lr_norm: float = 0.0,
    budget: int = 8 * 2**30,
    fixed: Collection[nn.Module] = (),
    fitted: bool = False,
    seed: int = 0,
    loop: Loop | None = None,
    stage: str = "reconstruct",
) -> Model:
    """Learn the rounding of `student` on the samples of `batches`, for `steps` steps a block; returns the student.

    For each of `blocks`, (name, module) as the teacher has them, in the order in which it calls them: with inputs x_P
    of the teacher and x_Q of the student, whose earlier blocks are done, and x_QP their mix, x_P in each entry with
    probability `drop`,

        mean over samples and positions of sum_channels (block_Q(x_QP) - block_P(x_P))^2 + round_weight * undecided
        bits.

    The second part starts after a fifth of the steps with beta from 20 to 2 (BRECQ: Li et al. 2021, arXiv 2102.05426;
    QDrop: Wei et al. 2022, arXiv 2203.05740). `joint` learns weight scales as well (Genie-M: Jeon et al. 2023,
    arXiv 2212.04780; round_weight 1), else AdaRound (round_weight 0.01). Adam; scales and steps decay by a cosine, and
    so do, where `lr_norm` is above zero (ours), gains and shifts of BatchNorms that want a gradient, which then are
    learned as well.
    A student that is `fitted` already, by `one_pass` or `compensate`, is learned from its own scales, steps and
    latent weights on (scales of min-max ranges, which keep none, are searched), else scales and steps are searched.
    Ours: a block whose error over all samples, with nothing dropped or undecided, ends no smaller than it began is
    rounded as it began, and it is said. In few steps at the rates these need, that is most blocks at 8 bits
    (recipes/LOG.md). `loop` gives device, folder and trackers; with several processes all do the same. Biases,
    other norms, the quantizers in `fixed` (of ranges that are known) and whatever no block holds stay as they are;
    static ranges there must have been calibrated. The teacher is left in eval mode and without gradients.

    Raises ValueError for numbers that are none, if the blocks have nothing to learn, are unknown to either model or are
    not reached, if weights are not float32 or are those of two layers, and NotFinite, which holds the student, when a
    loss is not finite: the block is then as before, those before it are done.
    """
    loop = loop or Loop()
    check_counts(steps=steps, batch_size=batch_size, budget=budget)
    check_amounts(most=1.0, drop=drop)
    check_amounts(round_weight=round_weight, lr_bits=lr_bits, lr_scale=lr_scale, lr_step=lr_step, lr_norm=lr_norm)
    device = loop.accelerator.device
    student.to(device).eval()
    teacher.to(device).eval().requires_grad_(False)
    check_batches(batches)
    chunks = [part for batch in batches for part in _chunks(check_batch(batch), device)]
    if not chunks:
        raise ValueError("there is no batch; give at least 1")
    names = names_of(blocks)
    check_float32(dict(quant_layers(student)))
    check_apart({name: layer for name, layer in quant_layers(student) if not isinstance(layer, QuantEmbedding)})
    recipe = _Recipe(steps, batch_size, drop, round_weight, (lr_bits, lr_scale, lr_step, lr_norm))
    rng, draw = generator(seed, device), generator(seed)
    done = set(fixed)
    with keeping(student), StepLog(loop.accelerator, stage, steps * len(blocks), loop.folder, loop.every) as log:
        for name in names:
            _block(student, name, "student")
            _block(teacher, name, "teacher")
        idle = [name for name in names if not any(map(is_quantizer, _block(student, name, "student").modules()))]
        names = as_called(teacher, names, chunks[0], idle)
        # The states wait on the host: what a block learns from is moved to the device with it.
        whole = Chain(teacher, names, chunks, device=device, last=True)
        own = Chain(student, names, chunks, like=whole, device=device)
        for number, name in enumerate(names):
            block = _block(student, name, "student")
            with stage_of(f"{stage}, block {name}", block=block, log=log) as at:
                soft = Softened(block, joint, drop, rng, done, fitted)
                if not soft.soft:
                    continue
                try:
                    calls = beside(own, twin_of(whole, number), number, budget, device) if at.todo else None
                    for step, error, undecided in _learn(block, soft, calls, recipe, rng, draw, at, name):
                        now = number * steps + step
                        if now % loop.every == 0 or step in (1, steps):
                            metrics = {"block": number + 1, "error": error.item(), "undecided": undecided.item()}
                            if not all(map(math.isfinite, metrics.values())):
                                raise NotFinite(
                                    f"{stage}, block {name}, step {step}: the loss is not finite ({metrics}). The "
                                    "block is as it was before; lower the learning rates or look at the batches"
                                )
                            log.write(now, metrics)
                except BaseException:
                    soft.restore()
                    raise
                done |= soft.harden()
    if done == set(fixed):
        raise ValueError(f"the blocks {names} hold no quantizer; give the blocks of the student")
    return student


def is_quantizer(module: nn.Module) -> bool:
    return isinstance(module, Quantizer)


def _learn(
    block: nn.Module, soft: Softened, calls: Calls | None, recipe: _Recipe, rng: torch.Generator,
    draw: torch.Generator, at: Stage, name: str,
) -> Iterator[tuple[int, Tensor, Tensor]]:  # fmt: skip
    """Steps of one block, none of one that is done; each gives its number, its error and its sum of undecided bits.
    `rng` drops, `draw` chooses the samples. At the end it may fall back on how it began."""
    if calls is None:
        return
    device, steps = rng.device, recipe.steps
    with torch.no_grad():  # finds the first activation steps
        rows = torch.arange(min(FIRST, len(calls.x)))
        calls.run(block, rows, calls.seen[rows].to(device))
    norms = soft.norms if recipe.rates[-1] else []
    parts = [[w.bits for w in soft.weights], [w.scale for w in soft.weights if w.joint], soft.steps, norms]
    learned = [p for part in parts for p in part]
    if not learned:
        return
    kept = [(part, lr, part is not parts[0]) for part, lr in zip(parts, recipe.rates, strict=True) if part]
    optimizer = torch.optim.Adam([{"params": part, "lr": lr} for part, lr, _ in kept])
    schedule = LambdaLR(
        optimizer, [lambda t, on=decays: 0.5 + 0.5 * math.cos(math.pi * t / steps * on) for _, _, decays in kept]
    )
    missed = partial(calls.missed, block, recipe.batch_size, device)
    fallback = Fallback(name, learned, partial(soft.decided, missed))
    for step in at.steps(steps, optimizer=optimizer, schedule=schedule):
        rows = torch.randperm(len(calls.x), generator=draw)[: recipe.batch_size].to(calls.x.device)
        x, y, seen = (t[rows].to(device) for t in (calls.x, calls.y, calls.seen))
        with torch.enable_grad():
            error = calls.error(calls.run(block, rows, qdrop(seen, x.to(seen), recipe.drop, rng)).float() - y, rows)
            undecided = torch.zeros((), device=device)
            if step > WARMUP * steps and soft.weights:
                beta = 20 - 18 * (step / steps - WARMUP) / (1 - WARMUP)
                undecided = torch.stack([w.undecided(beta) for w in soft.weights]).sum()
            grads = torch.autograd.grad(error + recipe.round_weight * undecided, learned, allow_unused=True)
        for parameter, grad in zip(learned, grads, strict=True):
            parameter.grad = grad
        optimizer.step()
        schedule.step()
        yield step, error.detach(), undecided.detach()
    fallback.settle()


def _block(model: nn.Module, name: str, whose: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise ValueError(
            f"the {whose} has no module {name!r}; give blocks by the names that both models have"
        ) from None


def _chunks(batch: Batch, device: torch.device) -> list[Batch]:
    """The batch in parts of at most CHUNK samples, on the device."""
    size = len(next(iter(batch.values())))
    return [{k: v[i : i + CHUNK].to(device) for k, v in batch.items()} for i in range(0, size, CHUNK)]
