"""What a run says, and where."""

import threading
from logging import ERROR, WARNING, getLogger
from pathlib import Path
from typing import Never

import pytest
import torch
from accelerate import Accelerator
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from huggingface_hub.utils.tqdm import progress_bar_states
from rich.progress import TimeRemainingColumn
from torch import nn
from transformers.utils import logging as transformers_logging

import zsaq
from toys import bert
from zsaq.quiet import quiet
from zsaq.train import logging
from zsaq.train.logging import StepLog, SynthesisLog
from zsaq.train.objectives import Objective
from zsaq.train.pair import Batch, Pair
from zsaq.train.synthesis import Source, Synthesizer, synthesize


class Numbers(Source):
    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.ones(2, 3))

    def forward(self) -> Batch:
        return {"x": self.x}


class Square(Objective):
    def __call__(self, pair: Pair) -> torch.Tensor:
        return pair.batch["x"].square().mean()


def synthesizer() -> Synthesizer:
    source = Numbers()
    return Synthesizer(source, Square(), torch.optim.SGD(source.parameters(), 0.1), nn.Linear(3, 2), stage="toy")


def test_steps_are_told_as_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    alone, images = Accelerator(cpu=True), synthesizer()
    next(images)
    with SynthesisLog(alone, every=2):
        for _ in range(3):
            next(images)
    next(images)
    shown = capsys.readouterr()
    assert [line.split("  ")[1] for line in shown.err.splitlines()] == ["step 2", "step 4"]
    assert shown.out == "", "stdout is for results"


def test_known_steps_come_with_an_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    source = Numbers()
    with SynthesisLog(Accelerator(cpu=True), every=2):
        synthesize(source, Square(), torch.optim.SGD(source.parameters(), 0.1), 6, nn.Linear(3, 2), stage="toy")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[1] for line in lines] == ["step 1/6", "step 2/6", "step 4/6", "step 6/6"]
    assert ["in all)" in line for line in lines] == [False, True, False, False]


def test_a_stage_is_estimated_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step is slow (8 s), each after it takes 2 s: step 4 comes after 14 s, all ten after 26."""
    now = iter([0.0, 8.0, *(8.0 + 2 * i for i in range(1, 10))])
    monkeypatch.setattr(logging.time, "perf_counter", lambda: next(now))
    with StepLog(Accelerator(cpu=True), "stage", 10, None, every=4) as log:
        for step in range(1, 11):
            log.write(step, {"loss": 0.5})
    assert capsys.readouterr().err.splitlines() == [
        "stage 1/10  8 s  loss 0.5",
        "stage 4/10  14 s  (about 26 s in all)  loss 0.5",
        "stage 8/10  22 s  loss 0.5",
        "stage 10/10  26 s  loss 0.5",
    ]


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (119, "119 s"), (720, "12 min"), (7199, "120 min"), (12240, "3.4 h")]
)
def test_durations(seconds: float, words: str) -> None:
    assert logging.duration(seconds) == words


def test_a_step_log_speaks_alone(capsys: pytest.CaptureFixture[str]) -> None:
    alone = Accelerator(cpu=True)
    with SynthesisLog(alone, every=1):
        with StepLog(alone, "stage", 1, None) as log:
            next(synthesizer())
            log.write(1, {"loss": 1.0})
        assert [line.split()[0] for line in capsys.readouterr().err.splitlines()] == ["stage"]
        next(synthesizer())
    assert capsys.readouterr().err.startswith("toy, images  step 1  0 s  loss 1")


def test_on_a_terminal_a_line_comes_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    alone = Accelerator(cpu=True)
    with SynthesisLog(alone) as log_of_images:
        next(synthesizer())
        assert log_of_images.bar is not None and "toy, images  step 1" in log_of_images.bar.tasks[0].description
        with StepLog(alone, "stage", 1, None):
            assert log_of_images.bar is None
        next(synthesizer())
        assert log_of_images.bar is not None
    assert log_of_images.bar is None


def test_an_estimate_comes_after_a_tenth_of_the_steps(capsys: pytest.CaptureFixture[str]) -> None:
    with SynthesisLog(Accelerator(cpu=True)):
        synthesizer().finish(60)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[1] for line in lines] == ["step 1/60", "step 6/60", "step 50/60"]
    assert ["in all)" in line for line in lines] == [False, True, False]


def test_an_estimate_comes_where_the_steps_are_known_late(capsys: pytest.CaptureFixture[str]) -> None:
    with SynthesisLog(Accelerator(cpu=True)):
        images = synthesizer()
        next(images)
        images.advance(60)
        next(images)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[1] for line in lines] == ["step 1", "step 1/60", "step 6/60", "step 50/60", "step 62"]
    assert ["in all)" in line for line in lines] == [False, False, True, False, False]


@pytest.mark.parametrize("way", ["finish", "advance", "next"])
def test_on_a_terminal_known_steps_have_a_bar_and_the_time_that_is_left(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with SynthesisLog(Accelerator(cpu=True)) as log_of_images:
        for _ in range(2):  # sources one after the other
            images = synthesizer()
            next(images) if way == "next" else getattr(images, way)(5)
            assert log_of_images.bar is not None
            (task,) = log_of_images.bar.tasks
            assert (task.completed, task.total) == ((1, None) if way == "next" else (5, 5))
            left = any(isinstance(column, TimeRemainingColumn) for column in log_of_images.bar.columns)
            assert left == (way != "next")


def test_only_the_main_process_speaks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    alone = Accelerator(cpu=True)
    monkeypatch.setattr(type(alone), "is_main_process", property(lambda _: False))
    with SynthesisLog(alone, every=1):
        next(synthesizer())
    assert capsys.readouterr() == ("", "")


def bars_and_hints() -> tuple[bool, bool, bool]:
    """Whether transformers' bars, the Hub's and accelerate's hints are shown."""
    return (
        transformers_logging.is_progress_bar_enabled(),
        not are_progress_bars_disabled(),
        getLogger("accelerate.utils.other").isEnabledFor(WARNING),
    )


def test_inside_quiet_others_are_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = bars_and_hints()
    assert before == (True, True, True)
    bert().save_pretrained(tmp_path / "before")
    assert "Writing model shards" in capfd.readouterr().err
    with pytest.raises(KeyError), quiet():
        assert bars_and_hints() == (False, False, False)
        bert().save_pretrained(tmp_path / "inside")
        assert capfd.readouterr() == ("", "")
        raise KeyError("whatever happens inside")
    assert bars_and_hints() == before


@pytest.mark.parametrize("hub_bars", [False, True])
def test_quiet_restores_what_it_found(hub_bars: bool) -> None:
    (enable_progress_bars if hub_bars else disable_progress_bars)()
    try:
        before = bars_and_hints()
        assert before == (True, hub_bars, True)
        with quiet(), quiet():
            assert bars_and_hints() == (False, False, False)
        assert bars_and_hints() == before
    finally:
        enable_progress_bars()


def test_threads_that_are_quiet_leave_all_as_it_was() -> None:
    before = (transformers_logging.is_progress_bar_enabled(), dict(progress_bar_states))
    level = (logger := getLogger("accelerate")).level
    progress_bar_states["peft.foo"] = False
    barrier = threading.Barrier(2)

    def within() -> None:
        with quiet():
            barrier.wait()  # both are inside
            assert logger.level == ERROR and not transformers_logging.is_progress_bar_enabled()
        barrier.wait()

    try:
        threads = [threading.Thread(target=within) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with pytest.raises(KeyError), quiet():
            raise KeyError
        assert are_progress_bars_disabled("peft.foo") and logger.level == level
    finally:
        del progress_bar_states["peft.foo"]
    assert (transformers_logging.is_progress_bar_enabled(), dict(progress_bar_states)) == before


def test_a_student_that_is_downloaded_shows_the_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[bool] = []

    def fetched(*_: object) -> Never:
        shown.append(not are_progress_bars_disabled())
        raise ValueError("not there")

    before = not are_progress_bars_disabled()
    monkeypatch.setattr("zsaq.io.loading.verified", fetched)
    with pytest.raises(ValueError, match="not there"):
        zsaq.load("user/name")
    assert shown == [before]
