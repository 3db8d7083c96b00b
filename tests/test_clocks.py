"""The seconds of rows: what several share counts for each that reads it, whoever comes first, also after a stop."""

import signal
import time
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

import zsaq
from language_toys import bpe, opt
from vision_toys import resnet
from zsaq import QuantConfig
from zsaq.language.chunks import Chunks
from zsaq.language.prompted import PromptedWriter
from zsaq.language.prompts import Prompts
from zsaq.train.checkpoint import Checkpoint
from zsaq.train.clocks import Clock, read, running
from zsaq.train.stages import part, stage
from zsaq.train.stopping import Stopped
from zsaq.vision.job import ImageJob


@pytest.mark.parametrize(("row", "step"), [("images", 2), ("one", 2), ("two", 1), ("two", 3)])
def test_a_run_that_goes_on_counts_what_rows_share_for_each(
    row: str, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    def steps(name: str, seconds: float, stop: Any) -> None:
        nonlocal now
        with stage("steps") as at:
            for turn in at.steps(3):
                now += seconds
                if stop == (name, turn):
                    Checkpoint.running[-1].stopper.heard(signal.SIGINT, None)  # as Ctrl-C is

    def images(stop: Any) -> None:
        nonlocal now
        steps("images", 10, stop)
        now += 5  # beside stages: done again in a run that goes on, and counted once

    def rows(stop: Any) -> dict[str, float]:
        job, seconds = SimpleNamespace(cache={}, costs={}), {}
        with Checkpoint(tmp_path / "run", {}, resume=True, every=1):
            for name in ("one", "two"):
                with part(name) as at:
                    ImageJob.once(job, "these", lambda: images(stop))  # type: ignore[arg-type]
                    steps(name, 1, stop)
                seconds[name] = at.clock.total
        return seconds

    with pytest.raises(Stopped):
        rows((row, step))
    now += 1000
    assert rows(None) == {"one": 38, "two": 38}


def test_what_was_read_before_a_stop_counts_where_it_costs_nothing_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    def row(stop: bool) -> float:
        nonlocal now
        with Checkpoint(tmp_path / "run", {}, resume=True, every=1), part("row") as at:
            if stop:  # a text on disk is there when the run goes on
                read({"text": 10.0})
            with stage("steps") as steps:
                for turn in steps.steps(3):
                    now += 1
                    if stop and turn == 2:
                        Checkpoint.running[-1].stopper.heard(signal.SIGINT, None)
            return at.clock.total

    with pytest.raises(Stopped):
        row(True)
    assert row(False) == 13


def test_clocks_of_other_threads_stand_for_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    def other() -> None:
        nonlocal now
        with running(Clock(), shared=True):
            now += 5
        read({"text": 1.0})

    with running(Clock()) as here:
        thread = Thread(target=other)
        thread.start()
        thread.join()
    assert here.total == 5


def test_what_rows_share_counts_for_each_that_reads_it_whatever_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    def passing(seconds: float, then: Any = lambda: None) -> Any:
        nonlocal now
        now += seconds
        return then()

    def images(job: Any, config: Any, *_: Any) -> nn.Module:
        for _turn in range(2):
            job.once("images", lambda: passing(30, lambda: job.once("prior", lambda: passing(5))))
        return passing(1, lambda: zsaq.quantize_model(job.teacher, config))

    def prior(job: Any, config: Any, *_: Any) -> nn.Module:
        job.once("prior", lambda: passing(5))
        return passing(2, lambda: zsaq.quantize_model(job.teacher, config))

    def nothing(job: Any, config: Any, *_: Any) -> nn.Module:
        return passing(3, lambda: zsaq.quantize_model(job.teacher, config))

    for methods in ([images, prior, nothing], [nothing, prior, images]):
        table = zsaq.compare(resnet(), ["w4a8"], methods, spec=16, preset="brecq")
        assert {run["method"]: run["seconds"] for run in table.runs} == {"images": 36, "prior": 7, "nothing": 3}
    baselines: Any = [prior]
    student = zsaq.quantize(resnet(), QuantConfig.parse("w4a16"), method=images, baselines=baselines, spec=16)
    assert [row.seconds for row in student.zsaq.results.rows] == [0, 7, 36]
    assert student.zsaq.results.seconds == 38, "all that passed"


def test_texts_count_for_each_row_that_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    def written(self: Chunks, i: int) -> tuple[list[Any], list[float]]:
        nonlocal now
        now += 10 * (1 + i)
        return [], []

    def prompted() -> Chunks:
        nonlocal now
        now += 3
        return Chunks(PromptedWriter(opt(bpe()), bpe(), max_tokens=5), Prompts(("it",), "given"))

    monkeypatch.setattr(Chunks, "chunk", written)
    seconds, one = [], None
    for places in ([0, 0], [1, 0], [0], [2]):
        with part("row") as at:
            one = one or Chunks.shared(prompted)
            for i in places:
                one.read(i)
            now += 1
        seconds.append(at.clock.total)
    assert seconds == [14, 34, 14, 64]
