"""Who wants to know how the training of a source goes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Watcher = Callable[[str, int, int | None, float], None]
_watchers: list[Watcher] = []


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Inside, each step of each `Synthesizer` calls `watcher(stage, step, steps, loss)`; `step` counts from 1."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


def tell(stage: str, step: int, steps: int | None, loss: float) -> None:
    for watcher in _watchers:
        watcher(stage, step, steps, loss)
