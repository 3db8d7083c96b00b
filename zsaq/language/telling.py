"""What is said while a model writes: nothing in the first seconds, then how long all of it will take."""

import time
from collections.abc import Callable
from typing import Final, Self, final

from accelerate import PartialState
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from zsaq.train.logging import StepLog, duration, say

Tell = Callable[[float], None]  # hears which share of a piece of work is done, from 0 to 1
SILENT: Final = 4.0  # seconds


def nobody(share: float) -> None:
    """Hears it and says nothing."""


def part_of(tell: Tell, start: float, share: float) -> Tell:
    """For a part of the work that `tell` hears of: it begins at `start` and is `share` of the whole."""
    return lambda done: tell(start + share * done)


@final
class Telling:
    """A context that is called with the share that is done: a bar on a terminal, and else a line after SILENT seconds
    and whenever twice as many have passed, with an estimate of the whole. Only the main process speaks, and none while
    a StepLog runs: its stage is then what people wait for."""

    def __init__(self, what: str) -> None:
        self.what, self.next = what, SILENT
        self.console = Console(stderr=True)
        self.speaks = PartialState().is_main_process and not StepLog.running
        self.bar: Progress | None = None

    def __enter__(self) -> Self:
        self.began = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, share: float) -> None:
        seconds = time.perf_counter() - self.began
        if not self.speaks or not share or seconds < self.next:
            return
        if self.console.is_terminal:
            if self.bar is None:
                self.bar = Progress(
                    TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(),
                    console=self.console, transient=True,
                )  # fmt: skip
                self.task = self.bar.add_task(self.what, total=1.0)
                self.bar.start()
            self.bar.update(self.task, completed=share)
            return
        self.next = 2 * seconds
        say(f"{self.what}  {share:.0%}  {duration(seconds)}  (about {duration(seconds / share)} in all)")
