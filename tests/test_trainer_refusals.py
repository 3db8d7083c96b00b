"""What the trainer refuses, and what it keeps when it stops."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from test_synthesis import Point
from toys import mlp
from toys_training import CONFIG, constant, plain, weights
from zsaq import (
    KL,
    SAM,
    Loop,
    Objective,
    Pair,
    QuantConfig,
    calibrate,
    compensate,
    distill,
    quantize_model,
    reconstruct,
    repeat,
    synthesize,
)
from zsaq.train.loop import processes
from zsaq.train.optim import NotFinite


def test_a_loss_that_is_not_finite_keeps_the_last_good_state() -> None:
    teacher, student = mlp(), quantize_model(mlp(), CONFIG)
    good = [{"input": torch.randn(4, 16)} for _ in range(2)]
    twin = quantize_model(teacher, CONFIG)
    student.load_state_dict(twin.state_dict())
    distill(twin, teacher, good, KL(), plain(twin), 2, constant())
    bad = [*good, {"input": torch.full((4, 16), math.nan)}]
    with pytest.raises(ValueError, match="step 3: the loss is not finite"):
        distill(student, teacher, bad, KL(), SAM(plain(student), student, rho=0.0), 3, constant())
    assert all(torch.allclose(a, b) for a, b in zip(weights(student), weights(twin), strict=True))


@pytest.mark.parametrize("steps", [1, 2])
def test_a_gradient_that_is_not_finite_keeps_the_last_good_state(steps: int) -> None:
    """The root of 0 has the loss 0 and an infinite slope."""

    class Root(Objective):
        def __call__(self, pair: Pair) -> torch.Tensor:
            return (pair.student.logits * 0).sum().sqrt()

    teacher, student = mlp(), quantize_model(mlp(), CONFIG)
    before = weights(student)
    with pytest.raises(NotFinite, match=r"step 1: .* its gradient") as stop:
        distill(student, teacher, [{"input": torch.randn(4, 16)}] * 2, Root(), plain(student), steps, constant())
    assert stop.value.student is student
    assert all(torch.equal(a, b) for a, b in zip(weights(student), before, strict=True))


def test_what_cannot_train_is_named_before_a_step() -> None:
    teacher, student, given = mlp(), quantize_model(mlp(), CONFIG), [{"input": torch.randn(2, 16)}]
    with pytest.raises(ValueError, match="no parameter of the student"):
        distill(student, teacher, given, KL(), plain(mlp()), 1)
    with pytest.raises(ValueError, match="ratio is"):
        distill(student, teacher, given, KL(), plain(student), 1, ratio=(0, 1))


@pytest.mark.parametrize("batches", [5, [[torch.ones(2, 16)]], [torch.ones(2, 16)], {"input": torch.ones(2, 16)}])
def test_what_is_no_batch_is_told(batches: Any) -> None:
    teacher, student = mlp(), quantize_model(mlp(), CONFIG)
    static = quantize_model(mlp(), QuantConfig.parse("w4a8s"))
    works: list[Callable[[], Any]] = [
        lambda: distill(student, teacher, batches, KL(), plain(student), 1),
        lambda: reconstruct(student, teacher, batches, [("0", teacher)], steps=1),
        lambda: compensate(student, batches, [("0", teacher)]),
        lambda: calibrate(static, batches),
    ]
    for work in works:
        with pytest.raises(ValueError, match=r"dicts? of tensors"):
            work()


@pytest.mark.parametrize("steps", [1.5, "2", None, 0])
def test_steps_that_are_no_number_of_them_are_told(steps: Any) -> None:
    teacher, student, given = mlp(), quantize_model(mlp(), CONFIG), [{"input": torch.randn(2, 16)}]
    source = Point()
    works: list[Callable[[], Any]] = [
        lambda: distill(student, teacher, given, KL(), plain(student), steps),
        lambda: reconstruct(student, teacher, given, [("0", teacher)], steps=steps),
        lambda: synthesize(source, KL(), torch.optim.Adam(source.parameters()), steps, teacher),
    ]
    for work in works:
        with pytest.raises(ValueError, match=r"give at least 1.* whole number"):
            work()


def test_a_tracker_that_is_not_installed_is_named() -> None:
    with pytest.raises(ValueError, match="no-such-tracker"):
        processes(["no-such-tracker"])


def test_batches_that_run_out_are_named() -> None:
    teacher, student = mlp(), quantize_model(mlp(), CONFIG)
    with pytest.raises(ValueError, match="ran out at step 2 of 3"):
        distill(student, teacher, [{"input": torch.randn(2, 16)}], KL(), plain(student), 3)
    with pytest.raises(ValueError, match="no batch"):
        next(repeat([]))


@pytest.mark.parametrize(
    "wrong",
    [
        *({"schedule": "bogus"}, {"schedule": None}, {"every": 0}, {"every": 1.5}, {"accumulate": 1.5}),
        *({"accumulate": "2"}, {"accumulate": 0}, {"warmup": "a"}, {"warmup": 1.0}, {"folder": 5}, {"folder": ""}),
        {"every": True},
    ],
)
def test_a_loop_that_cannot_be_is_told_when_it_is_made(wrong: dict[str, Any]) -> None:
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=f"{name} is {value!r}; give"):
        Loop(**wrong)


def test_a_folder_may_be_text(tmp_path: Path) -> None:
    folders: list[Any] = [str(tmp_path), "~/curves"]
    assert [Loop(folder=each).folder for each in folders] == [tmp_path, Path.home() / "curves"]


def test_numbers_of_numpy_are_numbers() -> None:
    count: Any = np.int64(2)
    loop = Loop(every=count, accumulate=np.int64(1), warmup=np.float32(0.5))  # type: ignore[arg-type]
    teacher = mlp()
    student = quantize_model(teacher, CONFIG)
    before = weights(student)
    distill(student, teacher, repeat([{"input": torch.randn(4, 16)}]), KL(), plain(student), count, loop)
    assert not all(torch.equal(a, b) for a, b in zip(weights(student), before, strict=True))


def test_fp16_is_refused() -> None:
    accelerator = Accelerator()
    accelerator.state._mixed_precision = "fp16"
    try:
        with pytest.raises(ValueError, match="bf16"):
            Loop(accelerator)
    finally:
        accelerator.state._mixed_precision = "no"
