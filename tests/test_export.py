"""An export appears whole or not at all, and what must not be exported is refused before anything is written."""

import os
from pathlib import Path
from typing import Any

import pytest

from exported import copied, exported
from zsaq.deploy import export as page
from zsaq.deploy.export import WRITERS, export
from zsaq.deploy.onnx.write import FACTS, MODEL, WEIGHTS
from zsaq.io.checksums import MANIFEST, check
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
    monkeypatch.setitem(WRITERS, "onnx", fake)


def test_what_was_exported_is_sealed_and_told(exported: Path) -> None:
    files = check(exported)["files"]
    assert {f"onnx/{name}" for name in (MODEL, WEIGHTS, FACTS)} < set(files)
    assert not [path for path in exported.rglob(".*") if path.is_file()]
    load(exported)


def test_an_export_elsewhere_leaves_the_source_alone(copied: Path, tmp_path: Path, quick: None) -> None:
    before = state(copied)
    assert export(copied, "onnx", tmp_path / "far" / "away") == {"from": "copied"}
    assert (tmp_path / "far/away/model.onnx").read_bytes() == b"graph"
    assert {name: state(copied)[name] for name in before} == before
    assert len(state(copied)) == len(before) + 3


def test_an_export_within_is_sealed_only_where_there_was_a_seal(copied: Path, quick: None) -> None:
    export(copied, "onnx", copied / "second")
    assert "second/model.onnx" in check(copied)["files"]
    (copied / MANIFEST).unlink()
    export(str(copied), "onnx", str(copied / "third"))
    assert not (copied / MANIFEST).exists()


def test_refusals_write_nothing(copied: Path, tmp_path: Path, quick: None) -> None:
    os.symlink(tmp_path / "nowhere", tmp_path / "dangling")
    before = state(copied)
    wrong: Any = "tflite"
    with pytest.raises(ValueError, match=r"'tflite'; give one of \('onnx', 'compressed-tensors'\)"):
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
    monkeypatch.setitem(WRITERS, "onnx", fails)
    with pytest.raises(error, match="in the middle"):
        export(copied, "onnx", copied / "second")
    assert state(copied) == before
    load(copied)


def test_an_interrupted_seal_takes_the_export_back(copied: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(folder: Path) -> Path:
        raise KeyboardInterrupt

    before = state(copied)
    monkeypatch.setattr(page, "seal", stop)
    with pytest.raises(KeyboardInterrupt):
        export(copied, "onnx", copied / "second")
    assert state(copied) == before
    load(copied)
