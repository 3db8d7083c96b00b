"""What `zsaq.compare` takes from a folder, and what it refuses, so that no number is another run's."""

import functools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import CellType
from typing import Any

import pytest
import torch
from tokenizers import normalizers
from torch import nn
from torch.utils.data import DataLoader

import toys
import zsaq
from language_toys import bert, bpe, opt, wordpiece
from zsaq.eval import scorers
from zsaq.report.comparison import RUNS, Comparison
from zsaq.report.runs import held, told, told_model
from zsaq.train.loop import processes


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


def scorer(rows: list[str]) -> Callable[[Any], float]:
    def score(_: Any) -> float:
        return float(len(rows)) if rows else score(_)

    return score


def test_a_value_is_known_by_its_content(tmp_path: Path) -> None:
    values = [
        1, [1], (1, 2), {"a": torch.ones(2)}, {"a": torch.zeros(2)}, {"a": torch.ones(2, dtype=torch.bfloat16)},
        zsaq.Grid(8), zsaq.Grid(4), lambda _: 1.0, lambda _: 2.0, functools.partial(score, 1),
        functools.partial(score, 2), Comparison(()).holds, Comparison(({},)).holds, score, other_score, int,
        scorer(["a"]), scorer(["b"]), nn.Linear, iter([]),
    ]  # fmt: skip
    assert len({told(value) for value in values}) == len(values)
    assert told(scorer(["a"])) == told(scorer(["a"]))
    assert held(CellType(torch.ones(2))) == (2,) and held(CellType()) is None
    assert held(CellType(model := bert(wordpiece()))) is model
    assert told(score) == f"{__name__}.score"
    for name in "ab":
        (tmp_path / name / "one").mkdir(parents=True)
        (tmp_path / name / "one" / "config.json").write_text(name)
    assert told_model(tmp_path / "a" / "one") != told_model(tmp_path / "b" / "one")


class Scorer:
    """A score with state, as an evaluator has it, which knows itself."""

    def __init__(self, *held: Any) -> None:
        self.held, self.me, self.log = held, self, logging.getLogger(__name__)

    def __call__(self, _: Any) -> dict[str, float]:
        return {"accuracy": 1.0}


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value: int) -> None:
        self.value = value


class Scaled(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale


def around(inner: Callable[..., Any], *, share: float) -> Callable[..., Any]:
    def score(model: Any, *, share: float = share) -> Any:
        return inner(model) * share

    return score


def cased() -> Any:
    tokenizer = wordpiece()
    tokenizer.backend_tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    return tokenizer


def laid_out(**settings: Any) -> Any:
    tokenizer = wordpiece()
    for name, value in settings.items():
        setattr(tokenizer, name, value)
    return tokenizer


def test_an_object_is_known_by_all_that_it_holds() -> None:
    values = [
        lambda: Scorer(), lambda: Scorer(0.1), lambda: Scorer(0.9), lambda: Scorer([0.1], {"a": torch.ones(2)}),
        lambda: Scorer(range(3)), lambda: Scorer(range(1, 4)), lambda: Scorer(torch.float32),
        lambda: Scorer(torch.float64), lambda: Scorer(Scorer(1)), lambda: Scorer(Slotted(1)), lambda: Slotted(2),
        lambda: Scorer(json), lambda: Scaled(0.5), lambda: Scaled(2.0), lambda: around(lambda _: 1, share=1.0),
        lambda: around(lambda _: 2, share=1.0), lambda: around(lambda _: 1, share=0.5), lambda: DataLoader([1, 2]),
        wordpiece, cased, lambda: laid_out(model_max_length=8), lambda: laid_out(padding_side="left"),
        lambda: laid_out(truncation_side="left"), lambda: laid_out(chat_template="{{ 1 }}"),
    ]  # fmt: skip
    keys = [told(make()) for make in values]
    assert len(set(keys)) == len(keys)
    assert keys == [told(make()) for make in values], "the same content is the same"


def test_what_use_leaves_behind_is_no_other_score_or_tokenizer() -> None:
    tokenizer, teacher = wordpiece(), toys.bert(2)
    glue = scorers.glue("sst2", teacher, tokenizer, rows=[{"sentence": "the film", "label": 1}], tell=lambda _: None)
    before = told(glue), told(tokenizer), told(processes())
    glue(teacher)
    tokenizer(["bad", "the film is bad"], padding=True, truncation=True, max_length=4)
    changed = processes()
    changed.step += 1
    assert (told(glue), told(tokenizer), told(changed)) == before


@pytest.mark.parametrize("other", [{"score": Scorer(2)}, {"tokenizer": cased()}, {"methods": [lambda *_: None]}])
def test_a_score_a_tokenizer_or_a_callable_of_other_content_is_another(other: Any, tmp_path: Path) -> None:
    given: dict[str, Any] = {"folder": tmp_path, "score": Scorer(1)}
    given["methods"] = [lambda job, config, *_: zsaq.quantize_model(job.teacher, config)]
    kept = compare(**given)
    assert compare(**given).runs == kept.runs
    with pytest.raises(ValueError, match=r"runs of something else \((score|reader|callable): "):
        compare(**(given | other))


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
        {"a": "0.5"}, {"a": None}, {"a": torch.ones(2)}, {"a": [1.0]},
    ],
    ids=str,
)  # fmt: skip
def test_a_score_that_is_no_number_by_name_is_refused(answer: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the score (calls|answers)"):
        compare(["rtn"], score=lambda _: answer, folder=tmp_path)
    assert not (tmp_path / RUNS).exists()


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
