"""What is told while images are synthesized."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from zsaq.train.logging import StepLog, SynthesisLog
from zsaq.train.objectives import Objective
from zsaq.train.pair import Batch, Pair
from zsaq.train.synthesis import Source, Synthesizer


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
    alone, played = Accelerator(cpu=True), synthesizer()
    next(played)
    with SynthesisLog(alone, every=2):
        for _ in range(3):
            next(played)
    next(played)
    told = [line.rsplit("  ", 2)[0] for line in capsys.readouterr().out.splitlines()]
    assert told == ["toy, images  step 2", "toy, images  step 4"]


def test_a_journal_speaks_alone(capsys: pytest.CaptureFixture[str]) -> None:
    alone = Accelerator(cpu=True)
    with SynthesisLog(alone, every=1):
        with StepLog(alone, "stage", 1, None) as log:
            next(synthesizer())
            log.write(1, {"loss": 1.0})
        assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["stage"]
        next(synthesizer())
    assert capsys.readouterr().out.startswith("toy, images  step 1  loss 1")


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


def test_only_the_main_process_speaks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    alone = Accelerator(cpu=True)
    monkeypatch.setattr(type(alone), "is_main_process", property(lambda _: False))
    with SynthesisLog(alone, every=1):
        next(synthesizer())
    assert capsys.readouterr().out == ""
