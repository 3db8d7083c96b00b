"""What kept runs are known by: any value's content, so that no other passes for it, and the same is the same."""

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
from torch.utils.data import DataLoader, TensorDataset

import toys
import zsaq
from language_toys import bert, wordpiece
from zsaq.eval import scorers
from zsaq.report.comparison import Comparison
from zsaq.report.content import held, told, told_model
from zsaq.train.loop import processes

PAIR = TensorDataset(torch.ones(2))


def score(_: Any) -> dict[str, float]:
    return {"accuracy": 1.0}


def other_score(_: Any) -> dict[str, float]:
    return {"accuracy": 2.0}


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
        lambda: around(lambda _: 2, share=1.0), lambda: around(lambda _: 1, share=0.5), lambda: DataLoader(PAIR),
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
    given: dict[str, Any] = {"folder": tmp_path, "score": Scorer(1), "tokenizer": wordpiece(), "configs": ["w4a8"]}
    given["methods"] = [lambda job, config, *_: zsaq.quantize_model(job.teacher, config)]
    kept = zsaq.compare(bert(wordpiece()), **given)
    assert zsaq.compare(bert(wordpiece()), **given).runs == kept.runs
    with pytest.raises(ValueError, match=r"runs of something else \((score|reader|callable): "):
        zsaq.compare(bert(wordpiece()), **(given | other))
