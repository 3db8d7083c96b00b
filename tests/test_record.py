"""Results travel with the student, both ways; damaged ones, or another model's, are a problem that is kept, no more."""

import copy
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForMultipleChoice, GPT2Config, GPT2LMHeadModel

from students import CONFIGS, student_of
from zsaq.io.checksums import check_manifest, fingerprint
from zsaq.io.loading import load
from zsaq.io.record import Record, read_results
from zsaq.io.saving import equal, save
from zsaq.quant.config import QuantConfig
from zsaq.quant.model import quantize_model
from zsaq.run import Data, Results, Row

W2 = CONFIGS["w2a8"]
RESULTS = Results(
    "someone/bert", "gptq", W2, 0, True, "random tokens",
    (Row("teacher", 1000, 0.0, {"accuracy": 0.9}), Row("gptq", None, 2.5, {"accuracy": 0.8})), data=Data("SST-2"),
)  # fmt: skip


@pytest.fixture
def logged(tmp_path: Path) -> Path:
    """What a run left: curves, pictures, and what does not go along."""
    folder = tmp_path / "run"
    (folder / "pictures").mkdir(parents=True)
    (folder / "model").mkdir()  # a student that was saved here before
    mine = ("private.jsonl", "empty.jsonl", "list.jsonl", "me.png", "pictures/me.png", "model/curves.png", "notes.txt")
    for name in ("curves.png", "pictures/images.png", *mine):
        (folder / name).write_text("" if "empty" in name else "[1]" if "list" in name else '{"text": "secret"}')
    for name in ("distill.jsonl", "model/distill.jsonl"):
        (folder / name).write_text('{"step": 1, "seconds": 0.1, "KL": null}\n')
    return folder


@pytest.fixture
def folder(tmp_path: Path, logged: Path) -> Path:
    return save(student_of("bert", W2), tmp_path / "model", results=RESULTS, files=logged)


def test_save_writes_results_and_what_was_logged(folder: Path) -> None:
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert there == {
        *("config.json", "model.safetensors", "zsaq_manifest.json", "results.json"),
        *("distill.jsonl", "curves.png", "pictures/images.png"),
    }
    assert set(check_manifest(folder)["files"]) == {"config.json", "model.safetensors"}
    size = (folder / "model.safetensors").stat().st_size
    assert RESULTS.student.bytes is None and Results.read(folder).student == Row("gptq", size, 2.5, {"accuracy": 0.8})


def test_results_come_back_with_the_model_and_with_its_copies(folder: Path) -> None:
    model: Any = load(folder)
    written = Results.read(folder)
    assert isinstance(model.zsaq, Record) and model.zsaq == Record(written, files=folder)
    assert written.fingerprint == fingerprint(folder)
    assert dataclasses.replace(written, fingerprint=None, rows=RESULTS.rows) == RESULTS
    assert copy.deepcopy(model).zsaq == model.zsaq
    again: Any = load(save(model, folder.parent / "again", results=model.zsaq.results))
    assert again.zsaq.results == written


def test_what_was_logged_goes_along_also_into_the_folder_itself(logged: Path) -> None:
    student = student_of("bert", W2)
    for _ in range(2):
        folder = save(student, logged / "inside", files=logged)
        names = {
            path.relative_to(folder).as_posix() for path in folder.rglob("*.*") if path.suffix in (".jsonl", ".png")
        }
        assert names == {"distill.jsonl", "curves.png", "pictures/images.png"}


def test_only_the_main_process_writes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    for rank in (1, 0):
        monkeypatch.setattr("torch.distributed.get_rank", lambda group=None, rank=rank: rank)
        assert save(student_of("bert", W2), tmp_path / f"{rank}") == tmp_path / f"{rank}"
    assert [path.name for path in tmp_path.iterdir()] == ["0"]


def test_scores_may_be_added_later(folder: Path) -> None:
    read_results(folder).scored({"gptq": {"accuracy": 0.7}}, Data("MRPC")).write(folder)
    model: Any = load(folder)
    assert model.zsaq.results.student.scores == {"accuracy": 0.7} and model.zsaq.problem is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format_version": 1}', "[" * 100_000, '{"format_version": 2}'])
def test_damaged_results_are_a_problem_and_never_a_refusal(folder: Path, text: str) -> None:
    (folder / "results.json").write_text(text)
    model: Any = load(folder)
    assert model.zsaq.results is None and "results.json cannot be read" in model.zsaq.problem


def test_results_of_another_model_are_not_taken(folder: Path, tmp_path: Path) -> None:
    other = save(student_of("bert", CONFIGS["w8a8"]), tmp_path / "other")
    (other / "results.json").write_bytes((folder / "results.json").read_bytes())
    model: Any = load(other)
    assert model.zsaq.results is None and "results.json belongs to another model" in model.zsaq.problem
    with pytest.raises(ValueError, match=r"belongs to another model .* remove it, or make it again"):
        read_results(other)
    (other / "zsaq_manifest.json").unlink()
    model = load(other)
    assert model.zsaq.results is None and "belongs to another model" in model.zsaq.problem
    data = json.loads((folder / "results.json").read_text())
    (other / "results.json").write_text(json.dumps(data | {"fingerprint": None}))
    with pytest.raises(ValueError, match="does not say which model it belongs to"):
        read_results(other)
    (tmp_path / "alone").mkdir()  # a run's folder without its model
    RESULTS.write(tmp_path / "alone")
    assert read_results(tmp_path / "alone") == RESULTS


def test_a_model_without_results_has_an_empty_record(tmp_path: Path) -> None:
    model: Any = load(save(student_of("gpt2", W2), tmp_path / "model"))
    assert model.zsaq == Record(files=tmp_path / "model")


@pytest.mark.parametrize("config", ["w2a8", "w4a8g16", "asymmetric", "static"])
def test_students_in_bfloat16_come_back_too(config: str, tmp_path: Path) -> None:
    student: Any = student_of("bert", CONFIGS[config]).to(torch.bfloat16)  # type: ignore[arg-type]
    modes = [module.training for module in student.train().modules()]
    assert load(save(student, tmp_path / "model")).dtype == torch.bfloat16
    assert [module.training for module in student.modules()] == modes


def test_a_student_whose_weights_lie_transposed_comes_back_within_noise(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=96, n_embd=64, n_layer=2, n_head=2, n_positions=24)
    student = quantize_model(GPT2LMHeadModel(config).eval(), QuantConfig.parse("w4a8"))
    load(save(student, tmp_path / "model"))


def test_nan_answers_are_equal_where_both_have_them() -> None:
    x = torch.tensor([1.0, math.nan])
    assert (
        equal(x, x, 0.0) and equal(x, x * 1.01, 0.05) and not equal(x, x * 1.01, 0.0) and not equal(x, x.flip(0), 1.0)
    )


def test_a_model_that_reads_neither_text_nor_images_is_saved_with_a_warning(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=24,
    )  # fmt: skip
    student = quantize_model(BertForMultipleChoice(config), W2)
    with pytest.warns(UserWarning, match=r"not compared: "):
        save(student, tmp_path / "model")
    load(tmp_path / "model", type(student))
