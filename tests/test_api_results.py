"""`zsaq.quantize`: callables as methods, scores, and what the results say of a run."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

import zsaq
from language_toys import bert, bpe, wordpiece
from teachers import folder_of, llama
from vision_toys import cnn, images, resnet
from zsaq import ImageSpec, QuantConfig
from zsaq.quant.model import is_quantized
from zsaq.report.card import Card
from zsaq.run import Data


def test_a_callable_is_a_method() -> None:
    def mine(job: Any, config: QuantConfig, budget: zsaq.Budget, seed: int, loop: zsaq.Loop) -> nn.Module:
        assert (seed, budget["depth"], budget.effort) == (5, 3, "light")
        return zsaq.quantize_model(job.teacher, config)

    student = zsaq.quantize(bert(wordpiece()), "w4a8", method=mine, seed=5, depth=3, effort="light")
    results = student.zsaq.results
    assert (results.method, results.zero_shot, results.budget["depth"]) == ("mine", False, 3)
    assert zsaq.quantize(bert(wordpiece()), "w4a8", method=mine, seed=5, depth=3, effort="light", zero_shot=True)
    anonymous = zsaq.quantize(
        bert(wordpiece()), "w4a8", method=lambda job, config, *_: zsaq.quantize_model(job.teacher, config)
    )
    assert anonymous.zsaq.results.method == "own"
    with pytest.raises(ValueError, match="give preset='brecq', 'psaq' or 'uniform'"):
        zsaq.quantize(resnet(), "w4a8", method=mine, spec=16)


def test_no_option_of_a_method_is_called_as_an_argument() -> None:
    """An option of that name would never arrive."""
    arguments = {name for call in (zsaq.quantize, zsaq.compare) for name in inspect.signature(call).parameters}
    for table in zsaq.methods().values():
        for method in table.values():
            assert not method.options().keys() & arguments, method.name


def test_a_plain_module_needs_its_spec() -> None:
    with pytest.raises(ValueError, match="give ImageSpec"):
        zsaq.quantize(cnn(), "w8a8")
    student = zsaq.quantize(cnn(), "w8a8", spec=ImageSpec(4, 16), images=4, image_steps=2, score=lambda model: 1)
    assert student.zsaq.results.model == "a Cnn" and student.zsaq.results.student.scores == {"score": 1.0}
    assert student(pixel_values=images(2)).shape == (2, 4)


@pytest.mark.parametrize("answer", [{"accuracy": 0.5, "kl": 1}, 0.25, torch.tensor(0.25)])
def test_scores_are_named_numbers_or_one(answer: Any) -> None:
    student = zsaq.quantize(bert(wordpiece()), "w4a8", method="rtn", score=lambda _: answer, data=Data("toy"))
    results = student.zsaq.results
    assert results.student.scores == (answer if isinstance(answer, dict) else {"score": 0.25})
    assert results.data == Data("toy") and [row.name for row in results.rows] == ["teacher", "rtn"]
    assert results.teacher.bytes > 0 and results.student.bytes is None


def test_each_baseline_is_made_once(tmp_path: Path) -> None:
    def mine(job: Any, config: QuantConfig, *_: Any) -> nn.Module:
        return zsaq.quantize_model(job.teacher, config)

    given: dict[str, Any] = {"baselines": ["rtn", "rtn-minmax", "auto", "rtn", mine], "method": mine, "license": "mit"}
    student = zsaq.quantize(bert(wordpiece()), "w8a8", score=lambda _: 0.5, data=Data("toy"), **given)
    assert [row.name for row in student.zsaq.results.rows] == ["teacher", "rtn", "rtn-minmax", "mine"]
    student.save_pretrained(tmp_path)
    assert len(Card.of(tmp_path).scores) == 4


def test_a_score_that_is_not_finite_does_not_cost_the_student(capsys: pytest.CaptureFixture[str]) -> None:
    student = zsaq.quantize(bert(wordpiece()), "w4a8", method="rtn", score=lambda _: {"kl": float("nan"), "f1": 1.0})
    assert student.zsaq.results.student.scores == {"f1": 1.0} and "kl is nan" in capsys.readouterr().err


def test_a_score_that_fails_does_not_cost_the_student(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(model: Any) -> float:
        if is_quantized(model):
            raise RuntimeError("out of memory")
        return 0.5

    given: dict[str, Any] = {"method": "rtn", "score": fails, "tokenizer": wordpiece()}
    student = zsaq.quantize(bert(wordpiece()), "w4a8", **given)
    assert "could not be scored (RuntimeError: out of memory)" in capsys.readouterr().err
    assert [row.scores for row in student.zsaq.results.rows] == [{"score": 0.5}, {}]
    with pytest.raises(RuntimeError, match="out of memory"):
        zsaq.quantize(bert(wordpiece()), "w4a8", checkpoint=tmp_path, **given)


def test_the_budget_is_told_before_it_is_spent(capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []

    def spend(*_: Any) -> nn.Module:
        lines.append(capsys.readouterr().err)
        raise ValueError("spent")

    with pytest.raises(ValueError, match="spent"):
        zsaq.quantize(bert(wordpiece()), "w4a8", method=spend, steps=7)
    assert lines == ["spend on a BertForSequenceClassification, effort default: steps 7\n"]


def test_results_hold_no_path_of_this_machine(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "llama", llama(), bpe())
    model: Any = LlamaForCausalLM.from_pretrained(folder)
    for given in (folder, model):
        student = zsaq.quantize(given, "w4a16", method="rtn", license="mit")
        student.save_pretrained(tmp_path / "out")
        text = (tmp_path / "out" / "results.json").read_text()
        assert str(tmp_path) not in text and student.zsaq.results.model == "llama"
        assert student.zsaq.results.base.name == "llama" and student.zsaq.results.base.license == {"license": "mit"}
    model.config._name_or_path = model.name_or_path = "/home/somebody/gone/llama"
    assert zsaq.quantize(model, "w4a16", method="rtn").zsaq.results.model == "llama"
    model.name_or_path = "me/llama"
    assert zsaq.quantize(model, "w4a16", method="rtn").zsaq.results.model == "me/llama"
