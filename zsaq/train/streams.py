"""Streams of batches that a run which was stopped finds again where they were."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Self, final

from zsaq.train.pair import Batch, check_batches
from zsaq.train.stages import stage
from zsaq.train.state import Held


@final
class Counted(Iterator[Batch]):
    """A stream that gives the same at every start: it is drawn again up to its place."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self.batches, self.drawn = iter(batches), 0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        batch = next(self.batches)
        self.drawn += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        place = state_dict["drawn"]
        for _ in islice(self, place - self.drawn):
            pass
        if self.drawn < place:
            raise ValueError(f"the batches end after {self.drawn}, and the run had read {place}: give the same again")


@final
class Mapped(Iterator[Batch]):
    """What `function` makes of each batch of a stream; its place is the stream's."""

    def __init__(self, function: Callable[[Batch], Batch], batches: Iterable[Batch]) -> None:
        self.function, self.batches = function, stream_of(batches)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        return self.function(next(self.batches))

    def state_dict(self) -> dict[str, Any]:
        return self.batches.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.batches.load_state_dict(state_dict)


def stream_of(batches: Iterable[Batch]) -> Any:
    """An iterator that can say its state: one that does already as it is, any other `Counted`. Raises ValueError for
    what holds no batches."""
    check_batches(batches)
    known = isinstance(batches, Iterator) and hasattr(batches, "state_dict") and hasattr(batches, "load_state_dict")
    return batches if known else Counted(batches)


def repeat(batches: Iterable[Batch]) -> Iterator[Batch]:
    """A finite collection of batches, over and over. Raises ValueError if it is empty."""
    check_batches(batches)
    kept = list(batches)
    if not kept:
        raise ValueError("there is no batch to repeat")
    while True:
        yield from kept


def drawn(stream: Any, count: int) -> list[Batch]:
    """The next `count` batches of a stream of `stream_of`, fewer where it ends; none is written twice."""
    if isinstance(stream, Counted):
        return list(islice(stream, count))
    held = Held()
    with stage("draw", batches=held, stream=stream) as at:
        if at.todo:
            held.value = list(islice(stream, count))
    return held.value
