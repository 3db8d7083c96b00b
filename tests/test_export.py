"""An export appears whole or not at all, names its student, and what must not be exported is refused before."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from exported import copied, exported
from zsaq.deploy import runtimes
from zsaq.deploy.onnx.write import MODEL, WEIGHTS
from zsaq.deploy.parity import machine
from zsaq.deploy.runtimes import RUNTIMES, Runtime, export, formats
from zsaq.io.added import EXPORT, check_added, read_added, read_export
from zsaq.io.checksums import MANIFEST, check_manifest, fingerprint
from zsaq.io.loading import load

__all__ = ["copied", "exported"]


def state(folder: Path) -> dict[str, bytes]:
    """All files below and beside `folder`, and the empty folders."""
    return {str(p): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.parent.rglob("*"))}


def fake(source: Path, target: Path) -> dict[str, Any]:
    target.mkdir(parents=True)
    (target / "model.onnx").write_bytes(b"graph")
    return {"from": source.name}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    writes(monkeypatch, fake)


def writes(monkeypatch: pytest.MonkeyPatch, write: Any) -> None:
    rows = tuple(replace(row, write=write) if row.place == "onnx" else row for row in RUNTIMES)
    monkeypatch.setattr(runtimes, "RUNTIMES", rows)


def test_an_export_is_no_part_of_the_model_and_names_it(exported: Path) -> None:
    assert set(check_manifest(exported)["files"]) == {"config.json", "model.safetensors"}
    assert {path.name for path in (exported / "onnx").iterdir()} >= {MODEL, WEIGHTS, EXPORT}
    facts = read_export(exported / "onnx")
    assert facts == read_added(exported / "onnx" / EXPORT, fingerprint(exported)) and "layers" in facts
    check_added(exported)
    assert not [path for path in exported.rglob(".*") if path.is_file()]
    load(exported)


def test_an_export_elsewhere_leaves_the_source_alone(copied: Path, tmp_path: Path, quick: None) -> None:
    before = state(copied)
    assert export(copied, "onnx", tmp_path / "far" / "away") == {"from": "copied"}
    assert (tmp_path / "far/away/model.onnx").read_bytes() == b"graph"
    assert {name: state(copied)[name] for name in before} == before
    assert len(state(copied)) == len(before) + 4


def test_an_export_leaves_the_manifest_alone(copied: Path, quick: None) -> None:
    before = (copied / MANIFEST).read_bytes()
    export(copied, "onnx", copied / "second")
    assert (copied / MANIFEST).read_bytes() == before
    load(copied)
    (copied / MANIFEST).unlink()
    export(str(copied), "onnx", str(copied / "third"))
    assert not (copied / MANIFEST).exists()
    load(copied)


def test_an_export_of_another_student_is_refused_and_one_alone_is_not(copied: Path, tmp_path: Path) -> None:
    shutil.copytree(copied / "onnx", tmp_path / "alone" / "onnx")
    assert read_export(tmp_path / "alone" / "onnx")["layers"]
    with (copied / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\1")
    for refuse in (lambda: read_export(copied / "onnx"), lambda: check_added(copied)):
        with pytest.raises(ValueError, match=r"onnx/export\.json belongs to another model"):
            refuse()
    (copied / "onnx" / EXPORT).unlink()
    with pytest.raises(ValueError, match=r"export\.json cannot be read"):
        check_added(copied)


def test_each_runtime_has_one_row() -> None:
    assert len({row.name for row in RUNTIMES}) == len(RUNTIMES)
    assert list(formats()) == ["onnx", "openvino", "compressed-tensors", "gguf", "gptq"]
    assert all(row.check or row.time for row in RUNTIMES) and isinstance(formats()["onnx"], Runtime)
    assert {"zsaq", "torch", "onnxruntime", "torchao"} < set(machine()["versions"])


def test_refusals_write_nothing(copied: Path, tmp_path: Path, quick: None) -> None:
    os.symlink(tmp_path / "nowhere", tmp_path / "dangling")
    before = state(copied)
    wrong: Any = "tflite"
    with pytest.raises(ValueError, match=r"'tflite'; give one of onnx, .*compressed-tensors"):
        export(copied, wrong)
    for target in (None, copied, copied / "config.json", tmp_path / "dangling"):
        with pytest.raises(ValueError, match="exists; remove it"):
            export(copied, "onnx", target)
    with pytest.raises(ValueError, match="no folder"):
        export(tmp_path / "absent", "onnx")
    assert state(copied) == before
    (copied / "config.json").write_text((copied / "config.json").read_text() + " ")
    before = state(copied)
    with pytest.raises(ValueError, match=r"config.json has \d+ bytes"):
        export(copied, "onnx", tmp_path / "far" / "away")
    assert state(copied) == before


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_nothing_half_written_stays(copied: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    def fails(source: Path, target: Path) -> dict[str, Any]:
        fake(source, target)
        raise error("in the middle")

    before = state(copied)
    writes(monkeypatch, fails)
    with pytest.raises(error, match="in the middle"):
        export(copied, "onnx", copied / "second")
    assert state(copied) == before
    load(copied)
