"""A run that can be stopped and goes on, bit for bit.

A run gives the same whenever it is started with the same arguments. What takes long in it are stages: loops of steps,
one behind or inside another. A `Checkpoint` keeps what each finished stage left, and, of the one that runs, the state
after one of its steps. A run that goes on is started anew, and every stage that it comes to takes what is kept in the
place of its steps.
"""

import os
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from shutil import rmtree
from typing import Any, ClassVar, Final, Protocol, Self, final

import torch.distributed as dist

from zsaq.locks import hold
from zsaq.train.clocks import Clock
from zsaq.train.logging import say
from zsaq.train.randomness import Streams
from zsaq.train.records import ANEW, MANIFEST, Records, agreed, rank
from zsaq.train.state import Stateful, random_state, set_random_state
from zsaq.train.stopping import Stopped, Stopper

PERIOD: Final = 300.0  # seconds between two checkpoints, where steps are not counted
LOCK: Final = ".lock"


class Open(Protocol):
    """A stage that runs: its path, and its seconds until now."""

    path: str
    clock: Clock


class Taken(ValueError):
    """A checkpoint's folder that another run writes to."""


@final
class Checkpoint:
    """A context in which stages are kept in `folder`, every so many steps, or about every five minutes.

    `key` describes the run. With `resume` it goes on from what the folder holds, or begins where that is nothing.
    SIGTERM and SIGINT end a step, write its state and raise `Stopped`. All processes share the folder, each has its own
    states in it. What cannot be written is told, and the run goes on. Raises ValueError before anything is spent for a
    folder that cannot be written to, that holds something else, another run's checkpoint, one that is damaged, or,
    without `resume`, any; and ConnectionError where another process has ended. `asked`: whether a person asked to
    resume, who is told where there is nothing to go on from.
    """

    running: ClassVar[list["Checkpoint"]] = []

    def __init__(
        self, folder: str | Path, key: Mapping[str, Any], *, every: int | None = None, resume: bool = False,
        asked: bool = True,
    ) -> None:  # fmt: skip
        if not isinstance(folder, str | os.PathLike) or not str(folder):
            raise ValueError(f"checkpoint is {folder!r:.80}; give a folder, or leave it off to keep nothing")
        if every is not None and (type(every) is not int or every < 1):
            raise ValueError(f"checkpoint_every is {every!r}; give a number of steps, at least 1")
        self.folder, self.every, self.resume = Path(os.path.expanduser(folder)).absolute(), every, resume
        self.asked = asked
        self.records = Records(self.folder, {name: str(value) for name, value in key.items()})
        self.streams, self.stopper = Streams(), Stopper()
        self.open: list[Open] = []
        self.counts: Counter[str] = Counter()
        self.fresh = True  # no step is kept or taken
        self.taken, self.last, self.began = 0, time.monotonic(), time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since the run began, without those in which it stood still."""
        return time.perf_counter() - self.began

    def __enter__(self) -> Self:
        self.prepare()
        self.stopper.__enter__()
        Streams.running.append(self.streams)
        Checkpoint.running.append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        Checkpoint.running.remove(self)
        Streams.running.remove(self.streams)
        self.stopper.__exit__()
        if self.lock is not None:
            self.lock.close()
        if isinstance(error, ValueError) and self.fresh:  # what was given is to be mended, and would be another run's
            self.remove()
        if isinstance(error, Stopped) and rank() == 0:
            kept = f"what was done is kept in {self.folder}: give the same again with --resume (resume=True) to go on"
            say(f"stopped; {kept if self.records.steps else 'nothing was done yet that could be kept'}")
        if isinstance(error, RuntimeError) and dist.is_initialized() and lost(error):
            raise ConnectionError(
                f"another process of this run has ended ({str(error).splitlines()[0]:.200}), so this one ends too; "
                f"what was kept is in {self.folder}: start all again with --resume (resume=True)"
            ) from error

    def remove(self) -> None:
        """What was kept is of no use any more."""
        if rank() == 0:
            rmtree(self.folder, ignore_errors=True)

    def prepare(self) -> None:
        """The folder, ours alone; what it holds is read. All processes refuse together."""
        try:
            self.take()
            if not (self.folder / MANIFEST).is_file():
                if foreign := [path.name for path in self.folder.iterdir() if path.name != LOCK]:
                    raise ValueError(f"{self.folder} holds something else ({foreign[0]}): give another folder")
            else:
                self.read()
            refused = None
        except ValueError as error:
            refused = error
        wrong, taken = agreed(refused is not None, isinstance(refused, Taken))
        if wrong:
            if self.lock is not None:
                self.lock.close()
            raise refused or (Taken if taken else ValueError)("another process of this run refuses it, and says why")
        if rank() == 0:
            self.records.store()
            self.records.sweep()
            if self.resume and (self.asked or self.records.steps):
                say(f"goes on from {self.folder}" if self.records.steps else f"no checkpoint in {self.folder}: begins")

    def take(self) -> None:
        """Raises ValueError unless the folder can be written to, by this run alone."""
        self.lock = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if rank() == 0:
                self.lock = (self.folder / LOCK).open("w")
        except OSError as error:
            raise ValueError(f"the checkpoint {self.folder} cannot be written ({error}): give another") from error
        try:
            if self.lock is not None:
                hold(self.lock.fileno())
        except BlockingIOError:
            raise Taken(f"another run writes to {self.folder}: wait for it, or give another folder") from None
        except OSError:
            say(f"files in {self.folder} have no locks: see to it that no other run writes there")

    def read(self) -> None:
        """Raises ValueError for what the run cannot go on from."""
        kept = Records.read(self.folder)
        if not kept.steps:
            return
        if not self.resume:
            raise ValueError(
                f"{self.folder} holds the checkpoint of a run that was stopped: go on with --resume (resume=True), or "
                f"{ANEW}"
            )
        kept.refuse_others(self.records.key)
        self.records, self.fresh = kept, False
        self.began -= kept.seconds.get("", 0.0)

    def save(self, stage: str, step: int | None, parts: Mapping[str, Stateful]) -> None:
        state = {
            "parts": {name: part.state_dict() for name, part in parts.items()},
            "random": random_state(), "streams": self.streams.state_dict(),
        }  # fmt: skip
        seconds = {path: each for path, each in self.records.seconds.items() if "/" not in path} | {"": self.seconds}
        for each in self.open:
            seconds |= each.clock.kept(each.path)
        try:
            self.records.write(stage, step, state, seconds)
        except OSError as error:
            say(f"a checkpoint could not be written ({error}); the run goes on, and what was kept before stays")
        self.taken, self.last = 0, time.monotonic()

    def restore(self, stage: str, parts: Mapping[str, Stateful]) -> None:
        try:
            state = self.records.load(stage)
            for name, part in parts.items():
                part.load_state_dict(state["parts"][name])
            self.streams.load_state_dict(state["streams"])
            set_random_state(state["random"])
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"{self.folder}, {stage}, does not fit this run ({error}): {ANEW}") from error

    def after(self, stage: str, step: int, parts: Mapping[str, Stateful]) -> None:
        """A step is done: keep its state if it is time, or if somebody asked the run to stop."""
        self.taken, self.fresh = self.taken + 1, False
        due = time.monotonic() - self.last >= PERIOD if self.every is None else self.taken >= self.every
        due, asked = agreed(due, self.stopper.asked)
        if due or asked:
            self.save(stage, step, parts)
        if asked:
            raise Stopped(asked)


def lost(error: RuntimeError) -> bool:
    """Whether an error of a collective says that another process is gone."""
    words = ("connection closed by peer", "connection reset by peer", "broken pipe", "gloo", "nccl", "timed out")
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)
