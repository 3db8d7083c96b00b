"""What a run tells: a live bar for people, plain lines where there is no terminal, JSON lines and trackers."""

import json
import math
import time
from pathlib import Path
from typing import final

from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@final
class Journal:
    """A context around one stage of `steps` steps. Only the main process speaks.

    `folder`: where `<stage>.jsonl` begins anew, a JSON object a step; None writes no file. Accelerate's trackers
    that were initialised on `accelerator` get the same numbers under `<stage>/`.
    """

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

    def __enter__(self) -> "Journal":
        self.began = time.perf_counter()
        self.bar.start()
        self.task = self.bar.add_task(self.stage, total=self.steps, told="")
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()
        if self.file is not None:
            self.file.close()

    def tell(self, step: int, values: dict[str, float]) -> None:
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
