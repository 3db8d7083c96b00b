"""The course of the generator methods: the generator alone, then ranges, then both in turns."""

from itertools import islice
from typing import TypeVar

import torch
from torch import nn

from zsaq.objectives import Objective
from zsaq.optim import Wrapper
from zsaq.synthesis import Player
from zsaq.trainer import Loop, calibrate, distill

Model = TypeVar("Model", bound=nn.Module)


def fit(
    student: Model,
    teacher: nn.Module,
    player: Player,
    objective: Objective,
    optimizer: torch.optim.Optimizer | Wrapper,
    steps: int,
    *,
    warmup: int = 0,
    calibration: int = 100,
    loop: Loop | None = None,
) -> Model:
    """Train `student` for `steps` on what `player` gives, which takes a step of its own each time; returns the student.

    First the player moves `warmup` times alone; its next `calibration` batches set the student's static input ranges,
    which then stay. A batch before the warm-up sets them for the start, for objectives of the player that look at the
    student. Raises ValueError as `calibrate`, `distill` and the player do.
    """
    if warmup < 0 or calibration < 1:
        raise ValueError(f"warmup is {warmup}, calibration {calibration}; give steps, at least 0 and 1")
    loop = loop or Loop()
    accelerator = loop.accelerator
    teacher.to(accelerator.device)
    student.to(accelerator.device)
    calibrate(student, islice(player, 1), accelerator)
    for _ in range(warmup):
        next(player)
    calibrate(student, islice(player, calibration), accelerator)
    return distill(student, teacher, player, objective, optimizer, steps, loop)
