"""What a row of a table takes by itself: what several rows share is made once, and counts for each that reads it."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Self, final


@final
class Clock:
    """The seconds of a part of a run, those `before` it was stopped included, but for what it shares with others: while
    that is made the clock stands, and `shared` holds, by name, the seconds of what was read."""

    def __init__(self, before: float = 0.0, shared: Mapping[str, float] | None = None) -> None:
        self.began, self.shared = time.perf_counter() - before, dict(shared or {})
        self.stands: float | None = None

    @property
    def seconds(self) -> float:
        return (time.perf_counter() if self.stands is None else self.stands) - self.began

    @property
    def total(self) -> float:
        """As if the part had made by itself all that it reads."""
        return self.seconds + sum(self.shared.values())

    def costs(self, name: str) -> dict[str, float]:
        """What whoever reads this part, called `name`, owes: its own seconds, and of what it read in its turn."""
        return {**self.shared, name: self.seconds}

    def kept(self, path: str) -> dict[str, float]:
        """What a checkpoint keeps of it, for `of`."""
        return {path: self.seconds} | {f"{path}: {name}": seconds for name, seconds in self.shared.items()}

    @classmethod
    def of(cls, path: str, kept: Mapping[str, float]) -> Self:
        inside = f"{path}: "
        shared = {name: seconds for name, seconds in kept.items() if name.startswith(inside)}
        return cls(kept.get(path, 0.0), {name.removeprefix(inside): seconds for name, seconds in shared.items()})


_running: ContextVar[tuple[Clock, ...]] = ContextVar("running", default=())  # of this thread, outermost first


@contextmanager
def running(clock: Clock, *, shared: bool = False) -> Iterator[Clock]:
    """Around a part of a run. `shared`: the clocks around it stand, until it is over."""
    before = _running.get()
    outer = [each for each in before if each.stands is None] if shared else []
    stood = time.perf_counter()
    for each in outer:
        each.stands = stood
    _running.set((*before, clock))
    try:
        yield clock
    finally:
        _running.set(tuple(each for each in _running.get() if each is not clock))
        made = time.perf_counter() - stood
        for each in outer:
            each.began, each.stands = each.began + made, None


def read(costs: Mapping[str, float]) -> None:
    """What is open reads something shared, at these `costs`; twice costs no more."""
    for clock in _running.get():
        clock.shared |= costs
