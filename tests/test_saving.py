"""`zsaq.save` writes a folder whole or not at all, and over nothing that it has not written."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import zsaq.atomic
from saved_student import Vocabulary, folder, names, saved
from students import CONFIGS, TEACHERS, bits, student_of
from zsaq.io.checksums import MANIFEST
from zsaq.io.loading import load
from zsaq.io.saving import save

__all__ = ["folder", "saved"]


def test_save_replaces_its_own_folder_whole(tmp_path: Path) -> None:
    first, second = student_of("bert", CONFIGS["w2a8"]), student_of("gpt2", CONFIGS["w8a8"])
    target = save(first, tmp_path / "deep" / "model", Vocabulary())
    for name in ("README.md", "results.json", "bench.json", "onnx/export.json"):
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_text("of the first")
    save(second, str(target))
    assert names(target) == ["config.json", "generation_config.json", "model.safetensors", MANIFEST]
    assert names(target.parent) == ["model"]
    assert torch.equal(bits(load(target)), bits(second))
    save(load(target), tmp_path / "again")
    for name in names(target):
        assert (target / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_save_refuses_what_it_has_not_written(tmp_path: Path) -> None:
    student = student_of("bert", CONFIGS["w2a8"])
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("dear")
    (tmp_path / "file").write_text("dear")
    for name in ("home", "file"):
        with pytest.raises(ValueError, match=f"{name} exists and was not written by zsaq.save: give a new folder"):
            save(student, tmp_path / name)
    with pytest.raises(ValueError, match=r"not a quantized model: give it to zsaq\.quantize_model first"):
        save(TEACHERS["bert"](), tmp_path / "float")
    for part in ("vocab.txt", {}):
        with pytest.raises(ValueError, match="goes along with no model: give its tokenizer or processor"):
            save(student, tmp_path / "part", part)
    assert names(tmp_path) == ["file", "home"] and names(tmp_path / "home") == ["thesis.txt"]
    (tmp_path / "empty").mkdir()
    assert names(save(student, tmp_path / "empty", None)) == ["config.json", "model.safetensors", MANIFEST]


class Broken:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def save_pretrained(self, folder: Path) -> None:
        (folder / "half").write_text("")
        raise self.error


class OtherActivation:
    """Changes what the model computes, and none of its tensors."""

    def save_pretrained(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))


class Meddler:
    """Changes the weights after they were written."""

    def save_pretrained(self, folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors["bert.pooler.dense.scale"] *= 2
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


MATCH = r"^$|disk full|scale'\] did not come back|answers otherwise than the student"


@pytest.mark.parametrize(
    "part", [Broken(KeyboardInterrupt()), Broken(OSError("disk full")), Meddler(), OtherActivation()]
)
def test_a_save_that_fails_leaves_the_folder_as_it_was(folder: Path, part: Any) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises((KeyboardInterrupt, OSError, ValueError), match=MATCH):
        save(student_of("bert", CONFIGS["w2a8"]), folder, part)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before and names(folder.parent) == ["copy"]


def test_a_rename_that_fails_puts_the_folder_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, rename = {path.name: path.read_bytes() for path in folder.iterdir()}, os.rename

    def fail(source: Path, target: Path) -> None:
        if source.suffix == ".partial":
            raise OSError("no")
        rename(source, target)

    monkeypatch.setattr(zsaq.atomic.os, "rename", fail)
    with pytest.raises(OSError, match="no"):
        save(student_of("gpt2", CONFIGS["w2a8"]), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before and names(folder.parent) == ["copy"]


SAVER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import zsaq
from students import CONFIGS, student_of
student = student_of(sys.argv[3], CONFIGS["w2a8"])
print("begun", flush=True)
while True:
    zsaq.save(student, Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_two_processes_that_save_to_one_folder_and_are_killed_leave_a_whole_model(tmp_path: Path) -> None:
    rng, target = random.Random(0), tmp_path / "model"
    for _ in range(4):
        command = [sys.executable, "-c", SAVER, str(Path(__file__).parent), str(target)]
        savers = [subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in ("bert", "gpt2")]
        for saver in savers:
            assert saver.stdout is not None and saver.stdout.readline() == "begun\n"
        time.sleep(rng.uniform(0.5, 2.0))
        for saver in savers:
            assert saver.poll() is None, "one tripped over the other"
            saver.kill()
            saver.communicate()
        load(target if target.exists() else zsaq.atomic.former_of(target) or target)
    save(student_of("bert", CONFIGS["w8a8"]), target)
    assert names(tmp_path) == ["model"]
