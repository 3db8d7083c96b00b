"""What a run says: a live bar for people, plain lines where there is no terminal, JSON lines and trackers.

Progress goes to stderr, so that stdout holds the results alone.
"""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any, ClassVar, Self, final

from accelerate import Accelerator
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from zsaq.train.watching import watched


def say(line: str) -> None:
    """A line of progress."""
    print(line, file=sys.stderr, flush=True)


@final
class Pace:
    """How long a stage of `steps` steps will take in all, by its first steps; said once."""

    def __init__(self, steps: int | None) -> None:
        self.steps, self.first, self.said = steps, None, steps is None

    def estimate(self, step: int, seconds: float) -> str:
        """Two spaces and words, at the second of the steps that are shown here; else nothing."""
        if self.first is None:
            self.first = step, seconds
        elif not self.said and self.steps is not None and step < self.steps:
            self.said = True
            rate = (seconds - self.first[1]) / (step - self.first[0])
            return f"  (about {duration(seconds + rate * (self.steps - step))} in all)"
        return ""


def duration(seconds: float) -> str:
    """As people say it: 24 s, 12 min, 3.4 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@final
class StepLog:
    """A context around one stage of `steps` steps. Only the main process speaks.

    `folder`: where `<stage>.jsonl` begins anew, a JSON object a step; None writes no file. Accelerate's trackers
    that were initialised on `accelerator` get the same numbers under `<stage>/`.
    """

    running: ClassVar[list["StepLog"]] = []

    def __init__(self, accelerator: Accelerator, stage: str, steps: int, folder: Path | None, every: int = 20) -> None:
        self.accelerator, self.stage, self.steps, self.every = accelerator, stage, steps, every
        self.speaks = accelerator.is_main_process
        self.console, self.pace = Console(stderr=True), Pace(steps)
        self.file = None
        if self.speaks and folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self.file = (folder / f"{stage}.jsonl").open("w+", encoding="utf-8")
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}"), console=self.console,
            disable=not (self.speaks and self.console.is_terminal),
        )  # fmt: skip

    def __enter__(self) -> "StepLog":
        self.began = time.perf_counter()
        for log_of_images in SynthesisLog.running:
            log_of_images.rest()
        StepLog.running.append(self)
        self.bar.start()
        self.task = self.bar.add_task(self.stage, total=self.steps, metrics="")
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()
        StepLog.running.remove(self)
        if self.file is not None:
            self.file.close()

    def state_dict(self) -> dict[str, Any]:
        """What was written until now, and the seconds that it took."""
        lines = ""
        if self.file is not None:
            self.file.seek(0)
            lines = self.file.read()
        return {"lines": lines, "seconds": time.perf_counter() - self.began}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.began = time.perf_counter() - state_dict["seconds"]
        if self.file is not None:
            self.file.seek(0)
            self.file.truncate()
            self.file.write(state_dict["lines"])
            self.file.flush()

    def write(self, step: int, values: dict[str, float]) -> None:
        """One step's numbers; `step` counts from 1."""
        if not self.speaks:
            return
        seconds = time.perf_counter() - self.began
        metrics = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        self.bar.update(self.task, completed=step, metrics=metrics)
        if not self.console.is_terminal and (step == 1 or step % self.every == 0 or step == self.steps):
            progress = f"{self.stage} {step}/{self.steps}  {seconds:.0f} s{self.pace.estimate(step, seconds)}"
            say(f"{progress}  {metrics}")
        if self.file is not None:
            finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
            self.file.write(json.dumps({"step": step, "seconds": round(seconds, 3), **finite}) + "\n")
            self.file.flush()
        self.accelerator.log({f"{self.stage}/{name}": value for name, value in values.items()}, step=step)


@final
class SynthesisLog:
    """A context in which sources that are trained say their steps and losses; only the main process speaks.

    Silent while a StepLog runs: its stage is then what people wait for.
    """

    running: ClassVar[list["SynthesisLog"]] = []

    def __init__(self, accelerator: Accelerator, every: int = 50) -> None:
        self.speaks, self.every = accelerator.is_main_process, every
        self.console = Console(stderr=True)
        self.bar: Progress | None = None

    def __enter__(self) -> Self:
        self.began, self.pace = time.perf_counter(), Pace(None)
        self.watching = watched(self.write)
        self.watching.__enter__()
        SynthesisLog.running.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        self.watching.__exit__(None, None, None)
        SynthesisLog.running.remove(self)
        self.rest()

    def rest(self) -> None:
        """Take the line off the terminal; the next step brings it back."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def write(self, stage: str, step: int, steps: int | None, loss: float) -> None:
        """One step's loss; `step` counts from 1, anew for each source, to `steps` where that is known, be it late."""
        if not self.speaks or StepLog.running:
            return
        if begins := step == 1 or steps != self.pace.steps:
            self.began, self.pace = time.perf_counter(), Pace(steps)
        count = f"{stage}, images  step {step}" + ("" if steps is None else f"/{steps}")
        if not self.console.is_terminal:
            early = steps is not None and step == max(2, steps // 10)  # for the estimate
            if begins or step % self.every == 0 or early:
                seconds = time.perf_counter() - self.began
                progress = f"{count}  {seconds:.0f} s{self.pace.estimate(step, seconds)}"
                say(f"{progress}  loss {loss:.4g}")
            return
        line = f"{count}  loss {loss:.4g}"
        if self.bar is None or begins:  # each source has a pace of its own
            self.rest()
            told = (SpinnerColumn(), TimeElapsedColumn()) if steps is None else (BarColumn(), TimeRemainingColumn())
            self.bar = Progress(TextColumn("{task.description}"), *told, console=self.console, transient=True)
            self.bar.add_task(line, total=steps)
            self.bar.start()
        self.bar.update(self.bar.task_ids[0], description=line, completed=step)
