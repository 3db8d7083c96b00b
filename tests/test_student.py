"""A student saves itself whole, publishes itself, and its results travel with it."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from torch import nn

import zsaq
from hub_client import turned
from hub_server import TOKEN, Hub
from language_toys import REAL, bert, bpe, opt, wordpiece
from zsaq import Loop, launch
from zsaq.io.checksums import check_manifest
from zsaq.report.card_text import NO_DATA, WITH_DATA
from zsaq.run import Data
from zsaq.student import noted

# huggingface_hub 2.4 sends a file as `data=`, which httpx2 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def student_of(folder: Path | None = None, **options: Any) -> Any:
    given = {"method": "rtn", "license": "mit", "score": lambda _: {"accuracy": 0.5}, "data": Data("toy")} | options
    return zsaq.quantize(bert(wordpiece()), "w4a8", tokenizer=wordpiece(), loop=Loop(folder=folder), **given)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with turned(monkeypatch) as server:
        yield server


def test_a_student_saves_itself_whole(tmp_path: Path) -> None:
    student = student_of(tmp_path / "run", method="llm-qat", generator=(opt(bpe()), bpe()), steps=2)
    student.save_pretrained(tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "results.json", "distill.jsonl"} <= names
    check_manifest(tmp_path / "out")
    again: Any = zsaq.load(tmp_path / "out")
    assert again.zsaq.results == student.zsaq.results and student.zsaq.results.fingerprint
    assert student.zsaq.results.student.bytes == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == [type(student).__name__]


def test_no_bars_of_others_are_left(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    student = zsaq.quantize(bert(wordpiece()), "w8a8", method="rtn", tokenizer=wordpiece())
    capfd.readouterr()
    student.save_pretrained(tmp_path / "one")
    zsaq.save(student, tmp_path / "two")
    zsaq.load(tmp_path / "one")
    assert capfd.readouterr() == ("", "")
    zsaq.export(tmp_path / "one", "compressed-tensors")  # which has bars of its own
    assert "Writing" not in (said := capfd.readouterr().err) and "Loading" not in said


def test_a_loaded_student_saves_itself_whole_again(tmp_path: Path) -> None:
    def files(folder: Path) -> dict[str, bytes]:
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}

    student = student_of(tmp_path / "run", method="llm-qat", generator=(opt(bpe()), bpe()), steps=2)
    student.save_pretrained(tmp_path / "out")
    first = files(tmp_path / "out")
    assert {"tokenizer.json", "tokenizer_config.json", "results.json", "distill.jsonl"} <= first.keys()
    zsaq.load(tmp_path / "out").save_pretrained(tmp_path / "again")
    assert files(tmp_path / "again") == first
    zsaq.save(zsaq.load(tmp_path / "out"), tmp_path / "out")
    assert files(tmp_path / "out") == first
    again = zsaq.load(tmp_path / "out")
    (tmp_path / "out" / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"tokenizer\.json, which lay beside .* is gone: load the model again"):
        again.save_pretrained(tmp_path / "lost")


def test_a_module_among_a_callables_options_is_no_obstacle_to_saving(tmp_path: Path) -> None:
    student = student_of(
        method=lambda job, config, *_, **__: zsaq.quantize_model(job.start, config), helper=nn.Linear(1, 1)
    )
    student.save_pretrained(tmp_path / "out")
    assert student.zsaq.results.budget["helper"] == "a Linear"


def test_a_copy_saves_itself_and_not_the_original(tmp_path: Path) -> None:
    student = student_of()
    twin = copy.deepcopy(student)
    twin.classifier.bias.data.fill_(7.0)
    twin.save_pretrained(tmp_path / "twin")
    student.save_pretrained(tmp_path / "student")
    saved: Any = [zsaq.load(tmp_path / name) for name in ("twin", "student")]
    assert [bool((model.classifier.bias == 7).all()) for model in saved] == [True, False]


def test_options_of_transformers_go_to_transformers(tmp_path: Path) -> None:
    student_of().save_pretrained(tmp_path / "out", max_shard_size="20KB")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1 and not (tmp_path / "out" / "results.json").exists()


def test_a_folder_of_something_else_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="was not written by"):
        student_of().save_pretrained(tmp_path)


@pytest.mark.parametrize("method", ["rtn", "gptq-real"])
def test_a_student_publishes_itself_and_says_whether_it_read_real_data(hub: Hub, tmp_path: Path, method: str) -> None:
    options = {"real": lambda: REAL, "calibration": 1} if method == "gptq-real" else {}
    student = student_of(method=method, **options)
    noted(student, recipe="recipes/student.py", recipe_sha256="0" * 64)
    url = student.push_to_hub("tester/tiny")
    (commit,) = hub.commits("tester/tiny")
    assert url.endswith(commit.oid) and {"results.json", "tokenizer.json", "README.md"} <= set(commit.files)
    assert str(tmp_path).encode() not in b"".join(commit.files.values()), "no path of this machine"
    card = ModelCard(commit.files["README.md"].decode())
    zero_shot = method == "rtn"
    assert card.data.to_dict()["zsaq"]["zero_shot"] is zero_shot
    assert (NO_DATA in card.text, WITH_DATA in card.text) == (zero_shot, not zero_shot)
    assert "recipes/student.py" in card.text and "0" * 16 in card.text


def test_nothing_is_published_without_a_licence(hub: Hub) -> None:
    student = student_of(license=None)
    with pytest.raises(ValueError, match="licen"):
        student.push_to_hub("tester/tiny")
    assert student.push_to_hub("tester/tiny", license="mit") and hub.commits("tester/tiny")


def test_what_would_fail_after_hours_fails_first(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("a step was taken")

    def run(model: Any = None, repo_id: str = "tester/tiny", **options: Any) -> None:
        model = bert(wordpiece()) if model is None else model
        launch.run(model, "w4a8", tmp_path / "out", push_to_hub=repo_id, method=never, **options)

    with pytest.raises(ValueError, match="needs --license"):
        run()
    bert(wordpiece()).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="needs --license"):
        run(tmp_path / "bert")
    with pytest.raises(ValueError, match="no repository id"):
        run(repo_id="a b/c", license="mit")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(ValueError, match="does not know this token"):
        run(license="mit")
    assert not (tmp_path / "out").exists()


def test_a_teacher_that_transformers_does_not_save_is_refused_before_anything_is_spent() -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("a step was taken")

    model = bert(wordpiece())
    layers: Any = model.bert.encoder.layer
    first, second = layers
    second.output.dense.weight = first.output.dense.weight
    with pytest.raises(ValueError, match=r"does not save this BertFor.*give parameters .* each their own"):
        zsaq.quantize(model, "w4a8", method=never, tokenizer=wordpiece())
