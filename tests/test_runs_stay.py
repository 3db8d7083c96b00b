"""What kept runs are known by stays what it was: through runs and in other processes; objects may know each other."""

import functools
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn
from tqdm import tqdm

import zsaq
from language_toys import bert, wordpiece
from teachers import processor
from vision_toys import resnet
from zsaq.eval import scorers
from zsaq.eval.images import ImageSource
from zsaq.report.content import told
from zsaq.train import loop
from zsaq.train.loop import Loop

ROOT = Path(__file__).parent


class Holder:
    def __init__(self, *held: Any) -> None:
        self.held = held

    def __call__(self, _: Any) -> float:
        return 1.0


class Fit(Holder):
    """A method that remembers what it made."""

    __name__ = "fit"

    def __init__(self) -> None:
        self.made: list[nn.Module] = []

    def __call__(self, job: Any, config: Any, *_: Any) -> Any:
        self.made.append(zsaq.quantize_model(job.teacher, config))
        return self.made[-1]


def remembering() -> Callable[..., Any]:
    made = []

    def fit(job: Any, config: Any, *_: Any) -> Any:
        made.append(1)
        return zsaq.quantize_model(job.teacher, config)

    return fit


@pytest.mark.parametrize("make", [Fit, remembering, lambda: Fit().__call__])
def test_a_callable_that_remembers_is_known_by_what_it_was(make: Callable[[], Any], tmp_path: Path) -> None:
    given: dict[str, Any] = {"tokenizer": wordpiece(), "folder": tmp_path, "score": Holder()}
    kept = zsaq.compare(bert(wordpiece()), ["w4a8", "w8a8"], [make()], **given)
    assert zsaq.compare(bert(wordpiece()), ["w4a8", "w8a8"], [make()], **given).runs == kept.runs


def test_where_it_runs_and_how_far_it_is_makes_no_other() -> None:
    drawn = random.Random(0)
    before = told(Holder(drawn))
    drawn.random()
    assert told(Holder(drawn)) == before
    assert told(Holder(torch.device("cpu"))) == told(Holder(torch.device("cuda:1"))) != told(Holder(torch.float32))
    with open(os.devnull, "w") as nowhere:
        bar = tqdm([1, 2], file=nowhere)
        before = told(Holder(bar))
        bar.update()
        assert told(Holder(bar)) == before == told(Holder(tqdm([1, 2], file=nowhere)))


def test_all_processes_take_the_key_of_the_main_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def from_main(objects: list[Any]) -> None:
        objects[:] = [{"score": "rank 0"}]

    monkeypatch.setattr(loop, "broadcast_object_list", from_main)
    for count, answer in ((1, "rank 1"), (2, "rank 0")):
        several: Any = SimpleNamespace(accelerator=SimpleNamespace(num_processes=count))
        assert Loop.agreed(several, {"score": "rank 1"}) == {"score": answer}


def test_objects_that_know_each_other_are_read_once() -> None:
    def crowd(last: int) -> Holder:
        holders = [Holder() for _ in range(40)]
        for holder in holders:
            holder.held = tuple(other for other in holders if other is not holder)
        holders[-1].held += (last,)
        return holders[0]

    def chain(last: int) -> Holder:
        return functools.reduce(lambda inner, _: Holder(inner), range(3000), Holder(last))

    def doubled(last: int) -> Holder:
        return Holder(Holder(functools.reduce(lambda inner, _: [inner, inner], range(60), [last])))

    for make in (crowd, chain, doubled):
        assert told(make(1)) == told(make(1)) != told(make(2))
    one = Holder(1)
    assert told(Holder(one, one)) == told(Holder(Holder(1), Holder(1))) != told(Holder(one, Holder(2)))
    endless: list[Any] = [1]
    endless.append(endless)
    assert told(endless) == told(endless) != told([1, [1]])


class Leaving(Holder):
    """What it notes is left out where it is pickled."""

    def __init__(self, *held: Any) -> None:
        super().__init__(*held)
        self.calls = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"held": self.held}

    @functools.cached_property
    def seen(self) -> int:
        return self.calls


class Computing(Holder):
    @functools.cached_property
    def seen(self) -> int:
        return 1


class Unpicklable(Holder):
    def __getstate__(self) -> Any:
        raise TypeError("not to be pickled")


class Noting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.last = nn.Linear(2, 2), None

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.last: Any = self.linear(inputs)
        return self.last


def test_what_a_class_leaves_out_is_no_part_of_it() -> None:
    leaving, computing, noting = Leaving(1), Computing(1), Noting()
    before = told(leaving), told(computing), told(noting)
    leaving.calls += 1
    assert computing.seen and noting(torch.ones(1, 2)) is noting.last
    assert (told(leaving), told(computing), told(noting)) == before
    assert told(Leaving(1)) != told(Leaving(2)) and told(Computing(1)) != told(Computing(2))
    assert told(Unpicklable(1)) == told(Unpicklable(1))


class Rank(Accelerator):
    """As one of two processes has it, as far as it is read before a score."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    @property
    def process_index(self) -> int:
        return self.rank

    @property
    def num_processes(self) -> int:
        return 2

    @property
    def is_main_process(self) -> bool:
        return self.rank == 0


def test_pictures_are_one_score_on_all_processes_and_after_scoring(tmp_path: Path) -> None:
    model, images = resnet(), processor()
    for name in model.config.id2label.values():
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((16, 16, 4), 90, np.uint8)).save(tmp_path / name / "transparent.png")

    def scorer(rank: int | None = None) -> Any:
        ours = None if rank is None else Rank(rank)
        return scorers.pictures(ImageSource(str(tmp_path)), model.config, images, model, accelerator=ours)

    score = scorer()
    before = told(score)
    assert score(model)["agreement"] == 1
    assert told(score) == before == told(scorer())
    assert told(scorer(0)) == told(scorer(1))


def test_sets_are_known_without_places_in_memory() -> None:
    code = "from test_runs_stay import Holder, told, remembering; print(told({Holder(1), remembering, 'a', 'b'}))"
    paths = os.pathsep.join([str(ROOT), str(ROOT.parent)])

    def key(size: int) -> str:
        junk = f"junk = [object() for _ in range({size} * 999)]; "
        given = os.environ | {"PYTHONPATH": paths, "PYTHONHASHSEED": str(size)}
        words = [sys.executable, "-c", junk + code]
        return subprocess.run(words, check=True, capture_output=True, text=True, env=given, timeout=120).stdout

    assert key(1) == key(2)
