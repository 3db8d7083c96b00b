"""Synthetic inputs: a source is trained so that the batches it gives please an objective.

`synthesize` trains until the images are done; a `Synthesizer` goes on while a student learns from what it gives.
"""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self, final

import torch
import torch.distributed as dist
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from zsaq.train.amounts import check_counts
from zsaq.train.objectives import Objective, Sum
from zsaq.train.optim import NotFinite
from zsaq.train.pair import Batch, Pair
from zsaq.train.stages import stage
from zsaq.train.state import Held, Tensors
from zsaq.train.watching import tell


class Source(nn.Module, ABC):
    """Where samples come from: images that are parameters themselves, or a generator."""

    @abstractmethod
    def forward(self) -> Batch:
        """A batch with a graph to the parameters: new samples of a generator, always the same images of a set."""


@final
class Synthesizer(Iterator[Batch]):
    """An endless stream: every `next` takes one step of the source and gives, detached, the batch it was taken on.

    The step minimises `objective(Pair(teacher, student, batch))`; only the source's parameters get gradients, those of
    a student in training are left alone. Without a student the teacher stands for it. `optimizer` and `scheduler` may
    be several; a ReduceLROnPlateau is told the loss, which `losses` collects. The teacher is frozen and in eval mode,
    the source follows it to its device. With several processes gradients are averaged, so sources must start alike.
    On a CPU images are shown to the models with channels last.

    `next` raises NotFinite if the loss or a gradient is not finite on any process; the source is then as it was.
    """

    def __init__(
        self,
        source: Source,
        objective: Objective,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        teacher: nn.Module,
        student: nn.Module | None = None,
        *,
        scheduler: LRScheduler | Sequence[LRScheduler] = (),
        stage: str = "synthesize",
    ) -> None:
        self.source, self.stage = source, stage
        self.begin = 0  # for those who watch: the steps before those that are counted,
        self.steps: int | None = None  # and how many these will be, where it is known
        self.teacher = teacher.eval().requires_grad_(False)
        self.student = teacher if student is None else student
        self.objective = objective if isinstance(objective, Sum) else 1.0 * objective
        self.optimizers = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else list(optimizer)
        self.schedulers = [scheduler] if isinstance(scheduler, LRScheduler) else list(scheduler)
        self.trained = [p for p in source.parameters() if p.requires_grad]
        self.losses: list[float] = []
        held = {id(p) for o in self.optimizers for group in o.param_groups for p in group["params"]}
        if not self.trained or not held <= {id(p) for p in self.trained}:
            raise ValueError("the optimizer must hold parameters of the source, and the source must have some to train")

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        device = next(self.teacher.parameters()).device
        self.source.to(device)  # the teacher may have moved, and parts of a source may come from it
        before = [buffer.clone() for buffer in self.source.buffers()]  # a BatchNorm of it moves as it runs
        with torch.enable_grad():
            batch = self.source()
            loss = self.objective(Pair(self.teacher, self.student, channels_last(batch), self.objective.captures))
            grads = torch.autograd.grad(loss, self.trained, allow_unused=True)
        moving = [(p, g) for p, g in zip(self.trained, grads, strict=True) if g is not None]
        if not moving:
            raise ValueError(f"{self.stage}: the objective does not depend on the source; there is nothing to learn")
        numbers = torch.stack([loss.detach(), nn.utils.get_total_norm([g for _, g in moving]).to(loss)])
        if dist.is_available() and dist.is_initialized():  # one source on all processes
            for _, g in moving:
                dist.all_reduce(g.div_(dist.get_world_size()))
            dist.all_reduce(numbers.div_(dist.get_world_size()))
        value, norm = numbers.tolist()
        if not (math.isfinite(value) and math.isfinite(norm)):
            for buffer, kept in zip(self.source.buffers(), before, strict=True):
                buffer.copy_(kept)
            raise NotFinite(
                f"{self.stage}, step {len(self.losses) + 1}: the loss is {value} and its gradient's norm {norm}. "
                "The source is as it was before; lower its learning rate or look at its last batch"
            )
        for p, g in moving:
            p.grad = g
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        for scheduler in self.schedulers:
            scheduler.step(*([value] if isinstance(scheduler, ReduceLROnPlateau) else []))
        self.losses.append(value)
        tell(self.stage, len(self.losses) - self.begin, self.steps, value)
        return {name: value.detach() for name, value in batch.items()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "source": Tensors(self.source).state_dict(), "losses": self.losses,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
        }  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.source.to(next(self.teacher.parameters()).device)  # where the optimizers' states have to be
        Tensors(self.source).load_state_dict(state_dict["source"])
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        for scheduler, state in zip(self.schedulers, state_dict["schedulers"], strict=True):
            scheduler.load_state_dict(state)
        self.losses = list(state_dict["losses"])

    def advance(self, steps: int) -> None:
        """`steps` steps, as a stage of the run, after which it goes on."""
        self.begin, self.steps = len(self.losses), steps
        with stage(self.stage, synthesizer=self) as at:
            for _ in at.steps(steps):
                next(self)
        self.begin, self.steps = 0, None

    def finish(self, steps: int, then: Callable[[], object] | None = None) -> Batch:
        """`steps` steps, as a stage of the run; the batch of the last one. `then` is called after each. The source is
        done with them: of its optimizers nothing is kept."""
        self.begin, self.steps = len(self.losses), steps
        last = Held()
        with stage(self.stage, source=self.source, last=last) as at:
            for _ in at.steps(steps, synthesizer=self):
                last.value = next(self), self.losses
                if then is not None:
                    then()
        batch, self.losses = last.value
        return batch


def synthesize(
    source: Source,
    objective: Objective,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
    steps: int,
    teacher: nn.Module,
    student: nn.Module | None = None,
    *,
    scheduler: LRScheduler | Sequence[LRScheduler] = (),
    losses: list[float] | None = None,
    stage: str = "synthesize",
) -> Batch:
    """Minimise `objective(Pair(teacher, student or teacher, source()))` for `steps` steps; see `Synthesizer`.

    Returns the batch of the last step, detached; adds the loss of every step to `losses`.
    Raises ValueError for steps that are no number of at least 1, or if a loss is not finite.
    """
    check_counts(steps=steps)
    synthesizer = Synthesizer(source, objective, optimizer, teacher, student, scheduler=scheduler, stage=stage)
    batch = synthesizer.finish(steps)
    if losses is not None:
        losses += synthesizer.losses
    return batch


def channels_last(batch: Batch) -> Batch:
    """The same numbers, images on a CPU with their channels beside each other, in which order convolutions and norms
    are mostly faster there: a step takes .78 of its time on a CIFAR ResNet-20, .71 on MobileNetV2 at 128 pixels."""
    return {
        name: value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 and value.is_cpu else value
        for name, value in batch.items()
    }


def numbered(stage: str, turn: int, turns: int) -> str:
    """The stage of one of several sources that are trained in turn, counted from 0, as people read it."""
    return stage if turns == 1 else f"{stage}, {turn + 1} of {turns}"


def seed_of(seed: int, index: int) -> int:
    """A seed of 48 bits for part `index` of a run with `seed`: seed + index would give run 1 what run 0 had before."""
    return int.from_bytes(hashlib.sha256(f"{seed}, {index}".encode()).digest()[:6])


def process_index() -> int:
    """The number of this process, for random streams that should differ between processes; 0 when alone."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
