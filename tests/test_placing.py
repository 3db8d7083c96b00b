"""transformers' own `save_pretrained` of a student: over no other model, and beside nothing of an earlier one."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel, Trainer, TrainingArguments

import zsaq
from full_disks import small_disk
from saved_student import Vocabulary, folder, names, saved
from students import CONFIGS, TEACHERS, bits, student_of
from zsaq import Results
from zsaq.io.loading import load
from zsaq.io.record import Record
from zsaq.run import Row
from zsaq.student import finish

__all__ = ["folder", "saved"]
W2, W8 = CONFIGS["w2a8"], CONFIGS["w8a8"]
MADE = {  # of an earlier student
    *("README.md", "report.html", "curves.png", "results.json", "parity.json", "bench.json", "onnx/export.json"),
    *("elsewhere/export.json", "onnx/model.onnx", "pictures/images.png", "chat_template.jinja"),
    *("model-00001-of-00002.safetensors", "model.safetensors.index.json", "adapter_config.json", "spiece.model"),
}
OTHERS = (
    "gguf/mine.gguf",
    "thesis.txt",
    "notes/a.md",
    "checkpoint-2/model.safetensors",
    "trainer_state.json",
    "private.jsonl",
)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def by_trainer(student: PreTrainedModel, folder: Path) -> None:
    Trainer(student, TrainingArguments(str(folder), report_to=[], use_cpu=True)).save_model()


def by_loaded(student: PreTrainedModel, folder: Path) -> None:
    """As stock transformers loads it, and not `zsaq.load`."""
    with_place = folder.parent / "place"
    zsaq.save(student, with_place)
    AutoModelForSequenceClassification.from_pretrained(with_place).save_pretrained(folder)


def by_results(student: PreTrainedModel, folder: Path) -> None:
    """A student that saves itself whole, given options of transformers."""
    results = Results("bert", "rtn", W2, 0, True, "none", (Row("rtn"),))
    finish(student, Record(results)).save_pretrained(folder, max_shard_size="1MB")


PARTS = ("model.safetensors", "pytorch_model.bin", "adapter_config.json", "parity.json", "onnx/x", "a/export.json")
WAYS: dict[str, Callable[[Any, Path], Any]] = {
    "method": lambda student, folder: student.save_pretrained(folder),
    "named": lambda student, folder: student.save_pretrained(save_directory=str(folder), max_shard_size="1MB"),
    "unbound": lambda student, folder: PreTrainedModel.save_pretrained(student, folder),
    "copy": lambda student, folder: copy.deepcopy(student).save_pretrained(folder),
    "trainer": by_trainer, "loaded": by_loaded, "finished": by_results,
}  # fmt: skip


def plant(folder: Path, paths: Any) -> None:
    for name in paths:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("old")


@pytest.mark.parametrize("way", WAYS)
def test_a_float_model_is_not_overwritten(tmp_path: Path, way: str) -> None:
    TEACHERS["bert"]().save_pretrained(tmp_path / "float")
    before = contents(tmp_path / "float")
    with pytest.raises(ValueError, match=r"float holds config\.json, which is no student of zsaq .* give a new folder"):
        WAYS[way](student_of("bert", W2), tmp_path / "float")
    assert contents(tmp_path / "float") == before


@pytest.mark.parametrize(
    "part", ["model.safetensors", "pytorch_model.bin", "adapter_config.json", "parity.json", "onnx/x"]
)
def test_parts_of_other_models_are_not_mixed_with(tmp_path: Path, part: str) -> None:
    plant(tmp_path / "model", [part])
    with pytest.raises(ValueError, match="would be mixed with this one or lost"):
        student_of("bert", W2).save_pretrained(tmp_path / "model")
    assert contents(tmp_path / "model") == {part: b"old"}


@pytest.mark.filterwarnings("ignore:.*went with it. save the tokenizer:UserWarning")
@pytest.mark.parametrize("way", WAYS)
def test_nothing_of_an_earlier_student_stays(folder: Path, way: str) -> None:
    plant(folder, (*MADE, *OTHERS))
    student = student_of("bert", W8)
    WAYS[way](student, folder)
    there = contents(folder)
    new = {"config.json", "model.safetensors", *(["training_args.bin"] if way == "trainer" else [])}
    assert set(there) == {*new, *OTHERS} and all(there[name] == b"old" for name in OTHERS)
    assert torch.equal(bits(AutoModelForSequenceClassification.from_pretrained(folder).eval()), bits(student))
    assert (folder / "model.safetensors").stat().st_mode & 0o444 == (folder / "config.json").stat().st_mode & 0o444
    assert [name for name in names(folder.parent) if name.startswith(".")] == []


def test_a_tokenizer_that_goes_is_told(folder: Path) -> None:
    with pytest.warns(UserWarning, match=r"tokenizer\.json of the model that lay in .* went with it: save"):
        student_of("bert", W8).save_pretrained(folder)


def test_a_new_folder_and_one_with_a_tokenizer_are_fine(tmp_path: Path) -> None:
    student = student_of("bert", W2)
    (tmp_path / "model").mkdir()
    Vocabulary().save_pretrained(tmp_path / "model")
    student.save_pretrained(tmp_path / "model")
    student.save_pretrained(tmp_path / "deep" / "model", max_shard_size="20KB")
    assert "tokenizer.json" in names(tmp_path / "model")
    for place in ("model", "deep/model"):
        assert torch.equal(bits(load(tmp_path / place)), bits(student))
    student.save_pretrained(tmp_path / "deep" / "model")
    assert names(tmp_path / "deep" / "model") == ["config.json", "model.safetensors"], "no shard stays"


def test_a_file_is_refused_and_a_link_is_followed(tmp_path: Path) -> None:
    student = student_of("bert", W2)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="file is no folder"):
        student.save_pretrained(tmp_path / "file")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for save in (lambda: zsaq.save(student, tmp_path / "link"), lambda: student.save_pretrained(tmp_path / "link")):
        save()
        assert (tmp_path / "link").is_symlink() and torch.equal(bits(load(tmp_path / "real")), bits(student))
    assert names(tmp_path) == ["file", "link", "real"]


def test_a_disk_that_is_full_leaves_all_as_it_was(folder: Path) -> None:
    before, student = contents(folder), student_of("bert", W8)
    for save in (student.save_pretrained, lambda place: zsaq.save(student, place)):
        for place in (folder, folder.parent / "new"):
            with (
                small_disk(5000),
                pytest.raises(OSError, match=r"cannot be written \(File too large\): free"),
            ):
                save(place)
    assert contents(folder) == before and names(folder.parent) == [folder.name]


def test_float_models_are_saved_as_ever(tmp_path: Path) -> None:
    TEACHERS["bert"]().save_pretrained(tmp_path)
    TEACHERS["bert"]().save_pretrained(tmp_path, max_shard_size="1MB")
    student_of("bert", W2).save_pretrained(tmp_path, is_main_process=False)
    assert names(tmp_path) == ["config.json", "model.safetensors"]


def test_adapters_go_where_no_model_lies(folder: Path) -> None:
    model: Any = load(folder)
    model._hf_peft_config_loaded = True
    with pytest.raises(ValueError, match=r"give adapters a folder of their own"):
        model.save_pretrained(folder)
