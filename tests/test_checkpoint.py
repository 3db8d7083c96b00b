"""What a checkpoint keeps, what it refuses, and how a run is asked to stop."""

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import zsaq
from interrupted import stopped_after
from language_toys import bert, bpe, opt, wordpiece
from zsaq.train.checkpoint import Checkpoint, Taken
from zsaq.train.randomness import generator
from zsaq.train.records import MANIFEST
from zsaq.train.stages import part, stage
from zsaq.train.state import Held
from zsaq.train.stopping import Stopped, Stopper

KEY = {"method": "toy", "seed": 1}


def counted(folder: Path, *, upto: int = 5, stop: int | None = None, **options: Any) -> list[float]:
    """A run of one stage that draws from three streams; the numbers it drew."""
    torch.manual_seed(0)
    seen = Held([])
    with Checkpoint(folder, KEY, **options), part("toy"):
        rng = generator(7)
        with stage("draw", seen=seen) as at:
            for step in at.steps(upto):
                seen.value.append(float(torch.rand(())) + float(torch.rand((), generator=rng)) + np.random.rand())
                if step == stop:
                    signal.raise_signal(signal.SIGINT)
    return seen.value


@pytest.fixture
def numbers(tmp_path: Path) -> list[float]:
    np.random.seed(0)
    return counted(tmp_path / "whole")


@pytest.mark.parametrize("every", [1, 2, None])
def test_random_streams_go_on(tmp_path: Path, numbers: list[float], every: int | None, capfd: Any) -> None:
    np.random.seed(0)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Stopped) as stop:
        counted(tmp_path / "run", stop=3, every=every)
    assert stop.value.code == 130
    assert f"kept in {tmp_path / 'run'}: give the same again with --resume" in capfd.readouterr().err
    np.random.seed(5)
    assert counted(tmp_path / "run", resume=True) == numbers
    assert counted(tmp_path / "run", resume=True) == numbers, "a finished stage is not run again"
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_waits_for_the_step_and_a_second_does_not() -> None:
    with Stopper() as stopper:
        stopper.looks = True
        signal.raise_signal(signal.SIGTERM)
        assert stopper.asked == signal.SIGTERM
        with pytest.raises(Stopped) as stop:
            signal.raise_signal(signal.SIGTERM)
        assert stop.value.code == 143
    with Stopper(), pytest.raises(Stopped):  # nobody looks: at once
        signal.raise_signal(signal.SIGINT)


def text_run(**given: Any) -> Mapping[str, Any]:
    options = {"seed": 3, "steps": 3, "config": "w2a8", "method": "llm-qat"} | given
    return {"model": bert(wordpiece()), "tokenizer": wordpiece(), "generator": (opt(bpe()), bpe()), **options}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with stopped_after(2), pytest.raises(Stopped):
        zsaq.quantize(**text_run(), checkpoint=folder)
    return folder


OTHERS = {
    "seed": ({"seed": 4}, "seed was '3', now '4'"),
    "budget": ({"steps": 4}, "steps 3.* now .*steps 4"),
    "method": ({"method": "zsaq-plain"}, "method was 'llm-qat', now 'zsaq-plain'"),
    "config": ({"config": "w4a8"}, "config was 'w2a8', now 'w4a8'"),
    "weights": ({"model": bert(wordpiece(), seed=9)}, "weights was"),
    "generator": ({"generator": (opt(bpe(), scale=0.2), bpe())}, "generator was"),
    "baselines": ({"baselines": ["rtn"]}, r"baselines was '\[\]', now \"\['rtn'\]\""),
    "loop": ({"loop": zsaq.Loop(accumulate=2)}, "accumulate was '1', now '2'"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_checkpoint_of_another_run_is_refused_by_what_differs(name: str, stopped: Path) -> None:
    given, words = OTHERS[name]
    before = sorted(path.name for path in stopped.iterdir())
    with pytest.raises(ValueError, match=f"is the checkpoint of another run .*{words}"):
        zsaq.quantize(**text_run(**given), checkpoint=stopped, resume=True)
    assert sorted(path.name for path in stopped.iterdir()) == before, "nothing is lost"


def test_another_version_is_another_run(stopped: Path, tmp_path: Path) -> None:
    data = json.loads((stopped / MANIFEST).read_text())
    data["key"]["versions"] = "{'torch': '1.0'}"
    (tmp_path / MANIFEST).write_text(json.dumps(data | {"records": {"a": {"step": 1, "files": []}}}))
    with pytest.raises(ValueError, match="versions was"):
        zsaq.quantize(**text_run(), checkpoint=tmp_path, resume=True)


def test_a_checkpoint_is_not_overwritten_by_who_forgot_to_resume(stopped: Path) -> None:
    with pytest.raises(ValueError, match="go on with --resume"):
        zsaq.quantize(**text_run(), checkpoint=stopped)


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with Checkpoint(tmp_path, KEY), pytest.raises(Taken, match="another run writes to"), Checkpoint(tmp_path, KEY):
        pass


def test_folders_that_cannot_be_kept_in_are_refused_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder, words in {tmp_path: "holds something else", tmp_path / "file": "cannot be written"}.items():
        with stopped_after(1) as taken, pytest.raises(ValueError, match=words):
            zsaq.quantize(**text_run(), checkpoint=folder)
        assert not taken
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"resume": True}, "give its folder as checkpoint"),
        ({"checkpoint_every": 3}, "give its folder as checkpoint"),
        ({"checkpoint_every": 0, "checkpoint": "x"}, "checkpoint_every is 0"),
        ({"checkpoint_every": True, "checkpoint": "x"}, "checkpoint_every is True"),
        ({"checkpoint": ""}, "checkpoint is ''; give a folder"),
        ({"checkpoint": 5}, "checkpoint is 5; give a folder"),
    ],
)
def test_options_that_cannot_be(given: dict[str, Any], words: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words):
        zsaq.quantize(**text_run(), **given)
    assert not any(tmp_path.iterdir())


def damage(path: Path) -> list[bytes]:
    data = path.read_bytes()
    return [b"", data[: len(data) // 2], data[:-1] + bytes([data[-1] ^ 1]), data + b"x", b"[" * 100_000, b"{}", b"null"]


def test_a_damaged_checkpoint_is_refused(stopped: Path) -> None:
    for path in (path for path in stopped.iterdir() if path.suffix):
        whole = path.read_bytes()
        for data in [None, *damage(path)]:
            path.unlink() if data is None else path.write_bytes(data)
            if path.name == MANIFEST and data in (None, whole + b"x"):
                path.write_bytes(whole)
                continue  # without a manifest it is no checkpoint; tested above
            with pytest.raises(ValueError, match=r"cannot be read|another run"):
                zsaq.quantize(**text_run(), checkpoint=stopped, resume=True)
            path.write_bytes(whole)


@pytest.mark.parametrize(
    "numbers", ['"count": Infinity, "seconds": {}', f'"count": 0, "seconds": {{"": 1{"0" * 400}}}']
)
def test_numbers_that_no_float_holds_are_refused(numbers: str, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(f'{{"format_version": 1, "key": {{}}, "records": {{}}, {numbers}}}')
    with pytest.raises(ValueError, match="cannot be read"), Checkpoint(tmp_path, KEY, resume=True):
        pass


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "x.txt"])
def test_names_that_lead_elsewhere_are_refused(stopped: Path, name: str) -> None:
    whole = (stopped / MANIFEST).read_text()
    data = json.loads(whole)
    next(iter(data["records"].values()))["files"][0]["name"] = name
    (stopped / MANIFEST).write_text(json.dumps(data))
    with pytest.raises(ValueError, match="is no plain name"):
        zsaq.quantize(**text_run(), checkpoint=stopped, resume=True)
    (stopped / MANIFEST).write_text(whole)


def test_what_cannot_be_written_is_told_and_the_run_goes_on(tmp_path: Path, monkeypatch: Any, capfd: Any) -> None:
    def full(path: Path, state: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("zsaq.train.records.write_state", full)
    assert len(counted(tmp_path / "run", every=1)) == 5
    assert "a checkpoint could not be written ([Errno 28] No space left on device)" in capfd.readouterr().err


def test_the_last_good_state_stays_until_the_next_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    whole: list[int] = []

    def looks(self: Any) -> None:
        named = {file["name"] for files in self.files.values() for file in files}
        whole.append(len(named - {path.name for path in tmp_path.iterdir()}))

    with monkeypatch.context() as patch:
        patch.setattr("zsaq.train.records.Records.sweep", looks)
        counted(tmp_path, every=1)
    assert whole and not any(whole)


def test_a_state_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    def layered(width: int, **given: Any) -> None:
        with Checkpoint(tmp_path, KEY, every=1, **given), stage("toy", layer=torch.nn.Linear(width, 2)) as at:
            for step in at.steps(3):
                if step == 2:
                    raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        layered(2)
    with pytest.raises(ValueError, match=r"toy.1, does not fit this run \(the module has other tensors"):
        layered(3, resume=True)


def test_what_has_no_state_is_refused_where_it_would_be_kept(tmp_path: Path) -> None:
    keeper = Checkpoint(tmp_path, KEY)
    with pytest.raises(ValueError, match="a object has no state_dict"), keeper, stage("x", a=object()):
        pass
    with stage("x", a=object()) as at:  # nothing is kept
        assert list(at.steps(2)) == [1, 2]
