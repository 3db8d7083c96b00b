"""Ctrl-C and the end of a job's time: the step is finished, and what was done is kept."""

import signal
import threading
from types import FrameType
from typing import Any, Final, final

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class Stopped(SystemExit):
    """A run that was asked to stop; exit code 128 + the signal, as shells have it: 130 for Ctrl-C, 143 for SIGTERM."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


@final
class Stopper:
    """A context in which both signals raise `Stopped`: at once, or, where somebody `looks` at `asked`, the signal's
    number, after each step, when that is done. A second signal does not wait.

    Outside of the main thread signals stay as they are.
    """

    def __init__(self) -> None:
        self.asked, self.looks = 0, False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Stopper":
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self.heard) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}

    def heard(self, number: int, frame: FrameType | None) -> None:
        waits = self.looks and not self.asked
        self.asked = number
        if not waits:
            raise Stopped(number)
