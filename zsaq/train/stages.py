"""The stages of a run: what takes long, and what a checkpoint keeps of it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, final

from zsaq.train.checkpoint import Checkpoint
from zsaq.train.clocks import Clock, running
from zsaq.train.records import agreed
from zsaq.train.state import stateful
from zsaq.train.stopping import Stopped


@final
class Stage:
    """A part of a run, see `stage`. Without a checkpoint it is nothing but its loop."""

    def __init__(self, keeper: Checkpoint | None, path: str, lasting: Mapping[str, Any]) -> None:
        self.keeper, self.path = keeper, path
        self.lasting = {} if keeper is None else {name: stateful(part) for name, part in lasting.items()}
        self.clock = Clock() if keeper is None else Clock.of(path, keeper.records.seconds)
        self.kept = keeper is not None and path in keeper.records.steps
        self.todo = keeper is None or not self.kept or keeper.records.steps[path] is not None

    def steps(self, count: int, **passing: Any) -> Iterator[int]:
        """1 .. `count`, or from where it was stopped; `passing`: what changes in the loop and is of no use after it."""
        if self.keeper is None:
            yield from range(1, count + 1)
        if self.keeper is None or not self.todo:
            return
        parts = self.lasting | {name: stateful(part) for name, part in passing.items()}
        done = self.keeper.records.steps[self.path] or 0 if self.kept else 0
        if self.kept:
            self.keeper.restore(self.path, parts)
        self.keeper.stopper.looks = True
        for step in range(done + 1, count + 1):
            yield step
            self.keeper.after(self.path, step, parts)

    def finish(self) -> None:
        if self.keeper is None:
            return
        if self.todo:
            self.keeper.save(self.path, None, self.lasting)
        else:
            self.keeper.restore(self.path, self.lasting)
        if asked := agreed(self.keeper.stopper.asked)[0]:
            raise Stopped(asked)


@contextmanager
def stage(name: str, **lasting: Any) -> Iterator[Stage]:
    """A part of a run that a checkpoint keeps: with stage("distill", student=student) as at: for step in at.steps(200):

    `lasting`: what it leaves behind, modules or whatever has state_dict and load_state_dict. Where it was finished
    before the run was stopped, `at.todo` is False, `at.steps` has none, and at the end of the block `lasting` is as it
    was left. What the block does beside its steps has to give the same when it is done again.
    """
    with part(name, **lasting) as at:
        yield at
        at.finish()


@contextmanager
def part(name: str, *, anywhere: bool = False, **lasting: Any) -> Iterator[Stage]:
    """A part of a run of which nothing is kept but its stages. Its path is that of the one around it and its name, of
    which equal ones are numbered; `anywhere`: what others read too. Its path is its name alone, since what it stands in
    may be over, and forgotten, when the run goes on, and its seconds are its own (`Clock`)."""
    keeper = Checkpoint.running[-1] if Checkpoint.running else None
    if keeper is None:
        at = Stage(None, name, {})
        with running(at.clock, shared=anywhere):
            yield at
        return
    outer, looked = keeper.streams.place, keeper.stopper.looks
    place = f"{outer}/{name}" if outer and not anywhere else name
    keeper.counts[place] += 1
    keeper.streams.place = f"{place}.{keeper.counts[place]}"
    at = Stage(keeper, keeper.streams.place, lasting)
    keeper.open.append(at)
    try:
        with running(at.clock, shared=anywhere):
            yield at
    finally:
        keeper.open.remove(at)
        keeper.streams.place, keeper.stopper.looks = outer, looked
