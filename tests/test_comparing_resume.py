"""What `zsaq.compare` takes from a folder, and what it refuses, so that no number is another run's."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import zsaq
from language_toys import bert, bpe, opt, wordpiece
from zsaq.report.comparison import RUNS, Comparison


def score(_: Any) -> dict[str, float]:
    return {"accuracy": 1.0}


def other_score(_: Any) -> dict[str, float]:
    return {"accuracy": 2.0}


def mine(job: Any, config: Any, budget: Any, *_: Any) -> nn.Module:
    assert budget["steps"] == 2
    return zsaq.quantize_model(job.teacher, config)


def rounding(job: Any, config: Any, *_: Any) -> nn.Module:
    return zsaq.quantize_model(job.teacher, config)


def compare(methods: list[Any], model: Any = None, **options: Any) -> Comparison:
    given = {"tokenizer": wordpiece(), "generator": (opt(bpe()), bpe()), "score": score}
    return zsaq.compare(bert(wordpiece()) if model is None else model, ["w4a8"], methods, **(given | options))


def moved(model: Any) -> Any:
    with torch.no_grad():
        next(model.parameters()).add_(1)
    return model


def batches(value: int) -> list[dict[str, torch.Tensor]]:
    return [{"input_ids": torch.full((1, 3), value), "attention_mask": torch.ones(1, 3, dtype=torch.long)}]


@pytest.mark.parametrize(
    ("key", "other"),
    [
        ("weights", lambda: {"model": moved(bert(wordpiece()))}),
        ("generator", lambda: {"generator": (moved(opt(bpe())), bpe())}),
        ("batches", lambda: {"batches": batches(5)}),
        ("text_pair", lambda: {"text_pair": True}),
        ("score", lambda: {"score": other_score}),
    ],
)
def test_runs_of_something_else_are_no_answer(tmp_path: Path, key: str, other: Callable[[], Any]) -> None:
    given: dict[str, Any] = {"folder": tmp_path, "batches": batches(4)}
    kept = compare([rounding], **given)
    assert compare([rounding], **given).runs == kept.runs, "the same content is the same"
    with pytest.raises(ValueError, match=rf"line 1, holds runs of something else \({key}: [^;]*\): give a new folder"):
        compare([rounding], **(given | other()))


def test_a_callable_has_all_options() -> None:
    assert [run["method"] for run in compare(["rtn", mine], steps=2).runs] == ["teacher", "rtn", "mine"]


def called(name: str) -> Callable[..., Any]:
    def method(*_: Any) -> None:
        raise AssertionError("ran")

    method.__name__ = name
    return method


@pytest.mark.parametrize(
    "methods", [[lambda: 1, lambda: 2], [called("gptq")], [called("teacher")], [called("a"), "rtn", called("a")]]
)
def test_two_methods_of_one_name_are_refused(methods: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"is called .*: rename"):
        compare(methods)


@pytest.mark.parametrize(
    "answer",
    [
        {"seconds": 1.0}, {"seed": 1}, {"of": 1}, {"data seen": 1}, {"kl sd": 1}, {3: 1.0}, None, "high",
        {"a": "0.5"}, {"a": None}, {"a": torch.ones(2)}, {"a": [1.0]}, {"a": 10**400},
    ],
    ids=lambda answer: str(answer)[:20],
)  # fmt: skip
def test_a_score_that_is_no_number_by_name_is_refused(answer: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the score (calls|answers)"):
        compare(["rtn"], score=lambda _: answer, folder=tmp_path)
    assert not (tmp_path / RUNS).exists()


@pytest.mark.parametrize("value", [1e301, -1e300, float("inf"), float("nan")])
def test_a_number_that_no_table_holds_is_left_out(value: float, tmp_path: Path, capsys: Any) -> None:
    answer = {"perplexity": value, "accuracy": 0.5}
    kept = compare(["rtn"], score=lambda _: answer, folder=tmp_path)
    assert [run.get("perplexity") for run in kept.runs] == [None, None] and kept.metrics == ["accuracy"]
    assert f"perplexity is {value}, which no table can hold" in capsys.readouterr().err
    assert Comparison.read(tmp_path, {}).runs == kept.runs


def test_what_may_be_a_score() -> None:
    with pytest.raises(ValueError, match="score is 'accuracy'; give a function"):
        compare(["rtn"], score="accuracy")
    assert compare(["rtn"], score=lambda _: torch.ones(1)).metrics == ["score"]


@pytest.mark.parametrize("cut", ['{"config": "w4', "{\n", "\0\0"])
def test_an_unfinished_last_line_is_dropped(tmp_path: Path, cut: str, capsys: pytest.CaptureFixture[str]) -> None:
    kept = compare(["rtn"], folder=tmp_path)
    path = tmp_path / RUNS
    whole = path.read_text()
    path.write_text(whole + cut)
    assert compare(["rtn"], folder=tmp_path).runs == kept.runs and path.read_text() == whole
    assert "line 3, was not finished" in " ".join(capsys.readouterr().err.split())
    path.write_text(whole.rstrip("\n"))
    assert compare(["rtn"], folder=tmp_path).runs == kept.runs and path.read_text() == whole
    path.write_text(whole.replace("\n", "\n{\n", 1))
    with pytest.raises(ValueError, match="line 2, is no JSON"):
        compare(["rtn"], folder=tmp_path)


def test_a_run_that_was_made_twice_counts_once(tmp_path: Path) -> None:
    kept = compare(["rtn"], folder=tmp_path)
    path = tmp_path / RUNS
    again = [json.loads(line) | {"seconds": 9.0} for line in path.read_text().splitlines()]
    path.write_text(path.read_text() + "".join(json.dumps(run) + "\n" for run in again))
    assert compare(["rtn"], folder=tmp_path).runs == kept.runs


def test_a_figure_leaves_out_runs_without_the_metric(tmp_path: Path) -> None:
    base = {"seed": 0, "zero_shot": True, "seconds": 1.0}
    runs = [{"config": "", "method": "teacher"}, {"config": "w4a8", "method": "rtn"}]
    runs += [{"config": "w4a8", "method": "gptq", "kl": 0.5}]
    assert Comparison(tuple(base | run for run in runs)).plot(tmp_path / "t.png").stat().st_size
