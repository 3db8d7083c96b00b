"""The course of the generator methods: the generator alone, then ranges, then both in turns."""

from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from zsaq.quant.ranges import known, static_ranges
from zsaq.train.amounts import check_counts
from zsaq.train.loop import Loop
from zsaq.train.objectives import Objective
from zsaq.train.optim import Wrapper, keeping
from zsaq.train.stages import stage
from zsaq.train.synthesis import Synthesizer
from zsaq.train.trainer import calibrate, distill
from zsaq.vision.pictures import album

Model = TypeVar("Model", bound=nn.Module)


def alternate(
    student: Model,
    teacher: nn.Module,
    synthesizer: Synthesizer,
    objective: Objective,
    optimizer: torch.optim.Optimizer | Wrapper,
    steps: int,
    *,
    warmup: int = 0,
    calibration: int = 100,
    loop: Loop | None = None,
    folder: Path | None = None,
) -> Model:
    """Train `student` for `steps` on what `synthesizer` gives, which takes a step of its own each time; returns the
    student.

    First the synthesizer moves `warmup` times alone; its next `calibration` batches set the student's static ranges,
    which then stay. Until then ranges are those of a batch before the warm-up, for objectives of the synthesizer that
    look at the student; they are forgotten. A student that has its ranges already keeps them. `folder` is where
    pictures of the synthesizer's next images go. Raises ValueError as `calibrate`, `distill` and the synthesizer do.
    """
    check_turns(steps, warmup, calibration)
    loop = loop or Loop()
    accelerator = loop.accelerator
    teacher.to(accelerator.device)
    student.to(accelerator.device)
    fresh = not known(student)
    with keeping(student):
        with stage("first ranges", student=student, synthesizer=synthesizer) as at:
            if at.todo and fresh:  # the synthesizer meets a student that has no ranges yet
                calibrate(student, islice(synthesizer, 1), accelerator)
        synthesizer.advance(warmup)
        with stage("calibrate", student=student, synthesizer=synthesizer) as at:
            for turn in at.steps(calibration if fresh else 0):
                batch = next(synthesizer)  # while no range listens: the synthesizer may look at the student
                if turn == 1:
                    forget(student)
                calibrate(student, [batch], accelerator)
    distill(student, teacher, synthesizer, objective, optimizer, steps, loop)
    if folder is not None:
        album(next(synthesizer), folder, synthesizer.losses)
    return student


def check_turns(steps: int, warmup: int, calibration: int) -> None:
    """Raises ValueError for numbers of steps that are none, before the first is taken."""
    check_counts(steps=steps, calibration=calibration)
    check_counts(0, warmup=warmup)


def forget(student: nn.Module) -> None:
    """Static ranges as if they had seen nothing: those of an untrained source would weigh on the mean of a few."""
    for ranges in static_ranges(student):
        ranges.forget()
