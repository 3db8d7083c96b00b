"""A saved folder holds what its manifest says, additions aside."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import zsaq.atomic
from saved_student import folder, names, saved
from students import bits
from zsaq.io.checksums import MANIFEST, check_manifest, fingerprint, identity, mismatch, write_checksums
from zsaq.io.loading import load

__all__ = ["folder", "saved"]

Json = dict[str, Any]


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
        (lambda f: ((f / "exp").mkdir(), link(f, "exp", "additional_chat_templates")), r"templates is a link to a fol"),
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
