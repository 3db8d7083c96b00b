"""Kills inside `zsaq.save`, over another student: what lies there afterwards is one of the two, whole.

Each kill is a process of its own, forked from one that has the students ready. Half of them die at a random moment,
half right before or after a call that changes the disk, so that no gap between two calls is left out.
"""

import os
import random
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from faults_folders import text_student
from faults_tally import Tally
from zsaq import load, save

CALLS: Final = ("rename", "replace", "fsync", "mkdir", "unlink", "rmdir", "open")  # of os


def bits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(24).reshape(2, 12) * 7 % 60).logits.view(torch.int32)


def in_a_child(act: Callable[[], Any], kill_after: float | None = None) -> int:
    """Run `act` in a fork; the signal that ended it, or 0. `kill_after`: seconds until SIGKILL."""
    child = os.fork()
    if child == 0:
        try:
            act()
        except BaseException:  # noqa: BLE001 (nothing of the child may run on)
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def die_at(turn: int, act: Callable[[], Any], after: bool) -> Callable[[], None]:
    """`act`, whose process kills itself at the call number `turn` of those that change the disk, or `after` it."""

    def deed() -> None:
        count = 0

        def watched(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal count
                count += 1
                if count == turn and not after:
                    os.kill(os.getpid(), signal.SIGKILL)
                result = real(*args, **kwargs)
                if count == turn and after:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            return call

        for name in CALLS:
            setattr(os, name, watched(getattr(os, name)))
        act()

    return deed


def kills(root: Path, rng: random.Random, count: int) -> tuple[list[Tally], int]:
    """The tallies, and how many of the processes were killed before they were done."""
    students = [text_student(seed) for seed in (0, 1)]
    answers = [bits(save(s, root / f"whole{i}") and load(root / f"whole{i}")) for i, s in enumerate(students)]
    assert not torch.equal(*answers)
    target, tally, swept = root / "target", Tally("kills inside zsaq.save"), Tally("what they leave behind")
    began = time.perf_counter()
    save(students[0], target)
    seconds, killed = time.perf_counter() - began, 0

    def whole() -> bool:
        """Whether one of the two lies there; if neither does, the refusal has to say where the former one is."""
        try:
            found = bits(load(target))
        except ValueError as error:
            former = [path for path in root.iterdir() if path.name.endswith(".former") and path.name in str(error)]
            if not former:
                raise AssertionError(f"no model is left, and nobody says where: {error}") from None
            found = bits(load(former[0]))
        return any(torch.equal(found, answer) for answer in answers)

    for turn in range(count):
        new = students[turn % 2]
        if turn % 2:
            ended = in_a_child(lambda new=new: save(new, target), rng.random() * seconds)
        else:
            at, after = rng.randrange(1, 60), rng.random() < 0.5
            ended = in_a_child(die_at(at, lambda new=new: save(new, target), after))
        killed += ended == signal.SIGKILL
        tally.attempt(f"kill {turn}", whole)
    swept.attempt("hidden folders after the next save", lambda: bool(save(students[0], target)) and not hidden(root))
    return [tally, swept], killed


def hidden(root: Path) -> list[str]:
    return [path.name for path in root.iterdir() if path.name.startswith(".")]
