"""What a run tells: a live bar for people, plain lines where there is no terminal, JSON lines and trackers."""

import json
import math
import time
from pathlib import Path
from typing import ClassVar, Self, final

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

from zsaq.train.synthesis import watched


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
        self.console = Console()
        self.file = None
        if self.speaks and folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self.file = (folder / f"{stage}.jsonl").open("w", encoding="utf-8")
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[told]}"), console=self.console,
            disable=not (self.speaks and self.console.is_terminal),
        )  # fmt: skip

    def __enter__(self) -> "StepLog":
        self.began = time.perf_counter()
        for log_of_images in SynthesisLog.running:
            log_of_images.rest()
        StepLog.running.append(self)
        self.bar.start()
        self.task = self.bar.add_task(self.stage, total=self.steps, told="")
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()
        StepLog.running.remove(self)
        if self.file is not None:
            self.file.close()

    def write(self, step: int, values: dict[str, float]) -> None:
        """One step's numbers; `step` counts from 1."""
        if not self.speaks:
            return
        seconds = time.perf_counter() - self.began
        told = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        self.bar.update(self.task, completed=step, told=told)
        if not self.console.is_terminal and (step == 1 or step % self.every == 0 or step == self.steps):
            print(f"{self.stage} {step}/{self.steps}  {seconds:.0f} s  {told}", flush=True)
        if self.file is not None:
            finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
            self.file.write(json.dumps({"step": step, "seconds": round(seconds, 3), **finite}) + "\n")
            self.file.flush()
        self.accelerator.log({f"{self.stage}/{name}": value for name, value in values.items()}, step=step)


@final
class SynthesisLog:
    """A context in which sources that are trained tell their steps and losses; only the main process speaks.

    Silent while a log runs: its stage is then what people wait for.
    """

    running: ClassVar[list["SynthesisLog"]] = []

    def __init__(self, accelerator: Accelerator, every: int = 50) -> None:
        self.speaks, self.every = accelerator.is_main_process, every
        self.console = Console()
        self.bar: Progress | None = None

    def __enter__(self) -> Self:
        self.began = time.perf_counter()
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

    def write(self, stage: str, step: int, loss: float) -> None:
        """One step's loss; `step` counts from 1, anew for each source."""
        if not self.speaks or StepLog.running:
            return
        if step == 1:
            self.began = time.perf_counter()
        told = f"{stage}, images  step {step}  loss {loss:.4g}"
        if not self.console.is_terminal:
            if step == 1 or step % self.every == 0:
                print(f"{told}  {time.perf_counter() - self.began:.0f} s", flush=True)
            return
        if self.bar is None:
            self.bar = Progress(
                SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(),
                console=self.console, transient=True,
            )  # fmt: skip
            self.bar.add_task(told, total=None)
            self.bar.start()
        self.bar.update(self.bar.task_ids[0], description=told)
