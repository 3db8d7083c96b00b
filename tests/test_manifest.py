"""A saved folder holds what its manifest says, additions aside; `zsaq.save` writes it whole or not at all."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import zsaq.atomic
from test_hub import CONFIGS, TEACHERS, bits, student_of
from zsaq.io.checksums import MANIFEST, check_manifest, fingerprint, identity, mismatch, write_checksums
from zsaq.io.loading import load
from zsaq.io.saving import save

Json = dict[str, Any]


class Vocabulary:
    """Stands for a tokenizer."""

    def __init__(self, text: str = "{}") -> None:
        self.text = text

    def save_pretrained(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text(self.text)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(student_of("bert", CONFIGS["w2a8"]), tmp_path_factory.mktemp("saved") / "model", Vocabulary())


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_saved_folder_is_whole_and_loads(folder: Path) -> None:
    assert names(folder) == ["config.json", "model.safetensors", "tokenizer.json", MANIFEST]
    manifest = check_manifest(folder)
    assert list(manifest["files"]) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert manifest["zsaq"] == zsaq.__version__ and manifest["torch"].startswith(torch.__version__.split("+")[0])
    before = (folder / MANIFEST).read_bytes()
    assert write_checksums(folder).read_bytes() == before
    load(folder)


@pytest.mark.parametrize(
    "name",
    [
        *("README.md", "figures/loss.png", ".eval_results/glue.yaml", ".gitattributes", "distill.jsonl"),
        *("results.json", "bench.json", "parity.json", "onnx/model.onnx", "compressed-tensors/model.safetensors"),
    ],
)
def test_what_no_loader_reads_may_come_and_change(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    for text in ("first", "second"):
        (folder / name).write_text(text)
        check_manifest(folder)


def flip(folder: Path, name: str = "model.safetensors") -> None:
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)


def link(folder: Path, target: str, name: str = "vocab.txt") -> None:
    (folder / name).symlink_to(target)


def template(folder: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates/x.jinja").write_text("")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            flip,
            r"model\.safetensors has the sha256 .*zsaq_manifest\.json says .*fetch the files again, or save",
        ),
        (lambda f: flip(f, "tokenizer.json"), r"tokenizer\.json has the sha256"),
        (lambda f: os.truncate(f / "model.safetensors", 999), r"model\.safetensors has 999 bytes, .* says \d+"),
        (lambda f: (f / "tokenizer.json").unlink(), r"tokenizer\.json is missing, .* lists it; fetch"),
        (lambda f: (f / "tokenizer.json").rename(f / "other.json"), r"tokenizer\.json is missing"),
        (lambda f: (f / "pytorch_model.bin").write_bytes(b"x"), r"pytorch_model\.bin is foreign, .*take it away"),
        (lambda f: (f / "adapter_config.json").write_text("{}"), r"adapter_config\.json is foreign"),
        (lambda f: (f / "model-2.safetensors").write_bytes(b"x"), r"model-2\.safetensors is foreign"),
        (lambda f: (f / "modeling.py").write_text(""), r"modeling\.py is foreign"),
        (lambda f: (f / "chat_template.jinja").write_text(""), r"chat_template\.jinja is foreign"),
        (template, r"additional_chat_templates/x\.jinja is foreign"),
        (lambda f: link(f, "/etc/hostname"), r"vocab\.txt is a link that leads out of the folder"),
        (lambda f: link(f, "/etc", "more"), r"more is a link that leads out"),
        (lambda f: link(f, "/dev/zero"), r"is a link that leads out"),
        (lambda f: os.mkfifo(f / "vocab.txt"), r"vocab\.txt is no regular file"),
        (lambda f: link(f, "config.json"), r"vocab\.txt is foreign"),
    ],
)
def test_any_change_is_refused_by_the_name_of_the_file(
    folder: Path, spoil: Callable[[Path], Any], message: str
) -> None:
    spoil(folder)
    for read in (check_manifest, load):
        with pytest.raises(ValueError, match=message):
            read(folder)


GOOD = {"sha256": "0" * 64, "size": 1}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda m: m["files"].update({"../config.json": GOOD}), r"'\.\./config\.json' is no plain relative path"),
        (lambda m: m["files"].update({"/etc/passwd": GOOD}), "no plain relative path"),
        (lambda m: m["files"].update({"a//b": GOOD}), "no plain relative path"),
        (lambda m: m["files"].update({"a/../../b": GOOD}), "no plain relative path"),
        (lambda m: m["files"].update({"C:\\b": GOOD}), "no plain relative path"),
        (lambda m: m["files"].update({"a\nb": GOOD}), "no plain relative path"),
        (lambda m: m["files"].update({"*": GOOD}), "no plain relative path"),
        (lambda m: m["files"].update({"": GOOD}), "no plain relative path"),
        (lambda m: m["files"]["config.json"].update(size=10**30), "not 64 hex digits of sha256 and a size"),
        (lambda m: m["files"]["config.json"].update(size=-1), "and a size"),
        (lambda m: m["files"]["config.json"].update(size=True), "and a size"),
        (lambda m: m["files"]["config.json"].update(size=1.5), "and a size"),
        (lambda m: m["files"]["config.json"].update(sha256="0" * 63), "64 hex digits"),
        (lambda m: m["files"]["config.json"].update(sha256="0" * 64 + "\n"), "64 hex digits"),
        (lambda m: m["files"]["config.json"].update(sha256=7), "64 hex digits"),
        (lambda m: m["files"]["config.json"].update(more=1), "64 hex digits"),
        (lambda m: m["files"].update({"config.json": []}), "64 hex digits"),
        (lambda m: m["files"].pop("config.json"), "name config.json"),
        (lambda m: m["files"].pop("model.safetensors"), r"model\.safetensors is foreign"),
        (lambda m: m.update(files=[]), "files must be an object"),
        (lambda m: m.pop("files"), "its keys are not"),
        (lambda m: m.update(more=1), "its keys are not"),
        (lambda m: m.update(torch=2), "must be texts"),
        (lambda m: m.update(format_version=2), "format_version is 2, not 1; upgrade zsaq"),
        (lambda m: m.update(format_version=True), "format_version is True"),
        (lambda m: m.update(format_version=10**400), "no manifest of zsaq"),
    ],
)
def test_hostile_manifests_are_refused(folder: Path, spoil: Callable[[Json], Any], message: str) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    spoil(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    for read in (check_manifest, load):
        with pytest.raises(ValueError, match=message):
            read(folder)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"a": NaN}', b"1" * 5000])
def test_what_is_no_manifest_is_refused(folder: Path, data: bytes) -> None:
    (folder / MANIFEST).write_bytes(data)
    with pytest.raises(ValueError, match="is no manifest of zsaq"):
        load(folder)


def test_a_manifest_that_cannot_be_read_is_refused(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).symlink_to("nowhere")
    with pytest.raises(ValueError, match=r"is a link that leads out|is no manifest of zsaq"):
        load(folder)
    (folder / MANIFEST).unlink()
    with (folder / MANIFEST).open("wb") as file:
        file.truncate(2**24 + 1)
    with pytest.raises(ValueError, match="16777217 bytes, more than"):
        load(folder)


def test_a_snapshot_of_the_cache_may_link_into_its_blobs(saved: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123"
    shutil.copytree(saved, blobs)
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert torch.equal(bits(load(snapshot)), bits(load(saved)))
    (snapshot / "vocab.txt").symlink_to("../../../elsewhere")
    with pytest.raises(ValueError, match="leads out of the folder"):
        load(snapshot)


def test_a_fingerprint_is_of_config_and_weights_as_they_lie_there(folder: Path) -> None:
    model = fingerprint(folder)
    assert model == identity(check_manifest(folder)["files"]) and len(model) == 64
    (folder / "tokenizer.json").write_text("another")
    assert fingerprint(folder) == model
    for spoil in (flip, lambda f: flip(f, "config.json"), lambda f: (f / "b.safetensors").write_bytes(b"")):
        spoil(folder)
        assert fingerprint(folder) != model
        model = fingerprint(folder)


def test_what_belongs_to_another_model_is_told() -> None:
    assert mismatch("ab" * 32, "ab" * 32) is None
    assert "does not say which model" in str(mismatch(None, "ab" * 32))
    for other in ("cd" * 32, 7, ["x"] * 1000):
        message = str(mismatch(other, "ab" * 32))
        assert "belongs to another model" in message and "remove it, or make it again" in message and len(message) < 120


def test_save_replaces_its_own_folder_whole(tmp_path: Path) -> None:
    first, second = student_of("bert", CONFIGS["w2a8"]), student_of("gpt2", CONFIGS["w8a8"])
    target = save(first, tmp_path / "deep" / "model", Vocabulary())
    for name in ("README.md", "results.json", "bench.json", "onnx/model.onnx"):
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
    assert names(tmp_path) == ["file", "home"] and names(tmp_path / "home") == ["thesis.txt"]
    (tmp_path / "empty").mkdir()
    assert names(save(student, tmp_path / "empty")) == ["config.json", "model.safetensors", MANIFEST]


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
