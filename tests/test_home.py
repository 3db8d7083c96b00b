"""Paths in the user's home, wherever a model, a student, a base or a generator is named."""

from pathlib import Path
from typing import Any

import pytest

import zsaq
from commands import told
from language_toys import bpe, job_of, opt
from teachers import folder_of
from zsaq.io.base import load_base
from zsaq.io.folder import place_of
from zsaq.io.teacher import load_teacher
from zsaq.io.verifying import is_student
from zsaq.language.job import TextJob


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder_of(tmp_path / "toy", opt(bpe()), bpe())
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_what_lies_at_home_is_read(home: Path) -> None:
    student = zsaq.quantize("~/toy", "w4a16", method="gptq", calibration=1)
    student.save_pretrained("~/student")
    again: Any = zsaq.load("~/student")
    assert again.zsaq.results.model == "toy" and is_student("~/student")
    assert (home / "student" / "tokenizer.json").is_file()
    results = zsaq.quantize_files("~/toy", home / "files", "w4a16", method="gptq", calibration=1)
    assert results.coverage == again.zsaq.results.coverage
    assert load_base("~/toy").config.model_type == "opt"
    job: Any = TextJob.of(job_of("bert").start, job_of("bert").tokenizer, generator="~/toy")
    assert job.generator == str(home / "toy")


@pytest.mark.parametrize("named", ["~/nope", "./nope", "/nope", "~nobody-here/nope"])
@pytest.mark.parametrize(
    "read",
    [place_of, load_teacher, load_base, zsaq.quantize, lambda name: zsaq.quantize_files(name, "out", "w4a16")],
    ids=["place", "teacher", "base", "quantize", "files"],
)
def test_a_folder_that_is_not_there_is_told_by_its_whole_path(read: Any, named: str, home: Path) -> None:
    path = str(home / "nope") if named.startswith("~/") else named
    with pytest.raises(ValueError, match="is no folder: give a folder with") as error:
        read(named)
    assert repr(path) in str(error.value)


def test_the_command_line_and_students_tell_it_too(home: Path) -> None:
    for words in (["quantize", "~/nope"], ["verify", "~/nope"]):
        assert str(home / "nope") in told(*words, code=2)["error"]
    with pytest.raises(ValueError, match=str(home / "nope")):
        zsaq.load("~/nope")
