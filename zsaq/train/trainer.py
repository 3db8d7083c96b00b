"""The one trainer, for language and vision, on Accelerate: the only loops.

`calibrate` fills static ranges; `distill` pulls the student to its teacher on any batches, and, with an adversary, lets
it move after every few steps (the min-max alternation).
"""

import math
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import nullcontext
from typing import Any, Final, Protocol, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import get_scheduler

from zsaq.quant.ranges import Static, static_ranges
from zsaq.quant.sharded import total_norm
from zsaq.train.amounts import check_counts
from zsaq.train.logging import StepLog
from zsaq.train.loop import Loop, prepared, processes
from zsaq.train.objectives import Objective, Sum
from zsaq.train.optim import NotFinite, Wrapper, keeping
from zsaq.train.pair import Batch, Pair, check_batch, check_batches, run_model
from zsaq.train.recomputing import recomputing
from zsaq.train.stages import stage as stage_of
from zsaq.train.streams import stream_of
from zsaq.train.widening import widened

Model = TypeVar("Model", bound=nn.Module)
Divergence = Callable[[Batch], tuple[Tensor, Tensor]]
SHOWN: Final = 4  # modules that a warning names


class Adversary(Protocol):
    """The other side of a min-max game: `ascend(divergence)` moves it one step up and tells its numbers.

    `divergence(batch)` answers the objective (a scalar with gradient to the batch's floats) and the teacher's answer.
    """

    def ascend(self, divergence: Divergence) -> dict[str, float]: ...


def calibrate(student: Model, batches: Iterable[Batch], accelerator: Accelerator | None = None) -> Model:
    """Fill the static ranges of `student` from the float activations of `batches`; returns the student.

    At the end each is frozen to a scale and a zero, which are what is computed with and saved; a later call goes on
    from the means that this one leaves. Raises ValueError if there are no batches and for activations that are not
    finite, with every range as it was; a student without static ranges is returned as it is. Warns of modules that a
    pass calls at several places, which have one range for all of them.
    """
    device = (accelerator or processes()).device
    ranges = static_ranges(student)
    student.to(device).eval()
    if not ranges:
        return student
    for each in ranges:
        each.observing = each.observer
    several = set[nn.Module]()
    check_batches(batches)
    try:
        with torch.no_grad():
            for batch in map(check_batch, batches):
                before = [each.observer.updates for each in ranges]  # a source may have shown it more
                run_model(student, {k: v.to(device) for k, v in batch.items()})
                several |= {r for r, seen in zip(ranges, before, strict=True) if r.observer.updates > seen + 1}
    finally:
        for each in ranges:
            each.observing = None
    if not all(each.observer.updates for each in ranges):
        raise ValueError("calibration left static ranges that saw nothing; give at least one batch that reaches all")
    for step in (Static.check_seen, Static.freeze):
        for each in ranges:
            step(each)
    warn_of_several(student, several)
    return student


def warn_of_several(student: nn.Module, several: Collection[nn.Module]) -> None:
    """Warn of the modules of these static ranges, which a pass reaches several times."""
    owners = [name.removesuffix(".ranges") for name, module in student.named_modules() if module in several]
    names = [name.removesuffix("_quantizer").rpartition(".")[0] for name in owners]
    if names:
        listed = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
        warnings.warn(
            f"a pass calls {listed} at several places, for which there is one static range: give each place a module "
            "of its own, or quantize it with dynamic ranges, where the places differ in range",
            stacklevel=3,
        )


def distill(
    student: Model,
    teacher: nn.Module,
    batches: Iterable[Batch],
    objective: Objective,
    optimizer: torch.optim.Optimizer | Wrapper,
    steps: int,
    loop: Loop | None = None,
    *,
    adversary: Adversary | None = None,
    ratio: tuple[int, int] = (5, 1),
    stage: str = "distill",
) -> Model:
    """Pull `student` to `teacher` for `steps` optimizer steps; both stay in eval mode, so that no dropout blurs SAM.

    `batches` yields this process's micro-batches, at least `steps * loop.accumulate` of them. With `adversary`, after
    every ratio[0] student steps it ascends ratio[1] times against the student as it is then. Returns the student, on
    the accelerator's device. Raises ValueError when the batches run out, and NotFinite, which holds the student, when a
    loss or a gradient is not finite, of the batches' source or the adversary too; in both cases the parameters are
    those of the last good step. Processes and
    micro-batches share a step exactly if they hold as many rows each.
    """
    loop = loop or Loop()
    accelerator = loop.accelerator
    device = accelerator.device
    student.to(device).eval()
    teacher.to(device).eval().requires_grad_(False)
    check_counts(steps=steps)
    wanted = [p for p in student.parameters() if p.requires_grad]
    if not wanted:
        raise ValueError("no parameter of the student wants a gradient; nothing can be distilled")
    if not {id(p) for p in wanted} & {id(p) for group in optimizer.param_groups for p in group["params"]}:
        raise ValueError("the optimizer holds no parameter of the student; make it from student.parameters()")
    if ratio[0] < 1 or ratio[1] < 0:
        raise ValueError(f"ratio is {ratio}; give student steps (at least 1) and ascent steps (0 or more) after them")
    innermost = optimizer.innermost if isinstance(optimizer, Wrapper) else optimizer
    model = prepared(accelerator, student, innermost)
    wanted = [p for p in student.parameters() if p.requires_grad]  # of a sharded student others than before
    if isinstance(optimizer, Wrapper) and isinstance(model, nn.parallel.DistributedDataParallel):
        optimizer.no_sync = model.no_sync
    for each in optimizer.nested() if isinstance(optimizer, Wrapper) else ():
        each.together = loop.shared
    shape = "constant_with_warmup" if loop.schedule == "constant" else loop.schedule
    schedule = get_scheduler(shape, innermost, int(steps * loop.warmup), steps)
    total = objective if isinstance(objective, Sum) else 1.0 * objective
    stream = stream_of(batches)
    lasting = {"student": student, "stream": stream} | ({} if adversary is None else {"adversary": adversary})

    with (
        keeping(student),
        recomputing(student, loop.recompute),
        StepLog(accelerator, stage, steps, loop.folder, loop.every) as log,
        stage_of(stage, **lasting, log=log) as at,
    ):
        for step in at.steps(steps, optimizer=optimizer, schedule=schedule):
            window = _window(stream, loop, step, steps)
            pairs = [Pair(teacher, model, batch, total.captures) for batch in window]
            metrics: dict[str, float] = {}

            def closure() -> Tensor:
                optimizer.zero_grad()
                loss = torch.zeros((), device=device)
                parts: dict[str, Tensor] = {}
                for i, pair in enumerate(pairs):
                    last = i == len(pairs) - 1
                    with nullcontext() if last else accelerator.no_sync(model):
                        value, terms = total.weighted(pair)
                        (value / len(pairs)).backward()
                    pairs[i] = pair.again()
                    loss += value.detach() / len(pairs)
                    for name, term in terms.items():
                        parts[name] = parts.get(name, 0) + term / len(pairs)
                norm = total_norm([p.grad for p in wanted if p.grad is not None]).to(loss)
                mean: Any = accelerator.reduce(torch.stack([loss, *parts.values(), norm]), "mean")
                named = dict(zip(["loss", *parts, "gradient"], mean.tolist(), strict=True))
                if not all(map(math.isfinite, named.values())):
                    raise NotFinite(
                        f"{stage}, step {step}: the loss is not finite, or its gradient ({named}). The student keeps "
                        "the parameters of the last good step. Lower the learning rate or SAM's rho, or check the "
                        "batches"
                    )
                if not metrics:
                    metrics.update(list(named.items())[:-1])
                return mean[0]

            rate = innermost.param_groups[0]["lr"]
            with accelerator.autocast():
                optimizer.step(closure)  # type: ignore[arg-type]  # torch says float, and takes tensors
            schedule.step()
            metrics["lr"] = rate
            others: dict[str, float] = {}
            if isinstance(optimizer, Wrapper):
                others |= optimizer.diagnostics()
            if adversary is not None and step % ratio[0] == 0 and step < steps:
                with widened(teacher):
                    for _ in range(ratio[1]):
                        others |= adversary.ascend(_divergence(teacher, student, total, accelerator))
            log.write(step, metrics | _averaged(others, accelerator))
    optimizer.zero_grad()
    return student


def _window(stream: Iterator[Batch], loop: Loop, step: int, steps: int) -> list[Batch]:
    window = []
    for _ in range(loop.accumulate):
        batch = next(stream, None)
        if batch is None:
            raise ValueError(f"the batches ran out at step {step} of {steps}; give more, or zsaq.repeat(batches)")
        window.append({k: v.to(loop.accelerator.device) for k, v in loop.part(check_batch(batch)).items()})
    return window


def _averaged(metrics: dict[str, float], accelerator: Accelerator) -> dict[str, float]:
    """Numbers of each process's own as their mean over the processes; all measure the same ones."""
    if accelerator.num_processes == 1:
        return metrics
    mean: Any = accelerator.reduce(torch.tensor(list(metrics.values()), device=accelerator.device), "mean")
    return dict(zip(metrics, mean.tolist(), strict=True))


def _divergence(teacher: nn.Module, student: nn.Module, objective: Sum, accelerator: Accelerator) -> Divergence:
    def divergence(batch: Batch) -> tuple[Tensor, Tensor]:
        pair = Pair(teacher, student, {k: v.to(accelerator.device) for k, v in batch.items()}, objective.captures)
        with accelerator.autocast():
            return objective(pair), pair.teacher.answer

    return divergence
