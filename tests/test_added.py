"""What is added to a saved model belongs to it, and a parity report also to the exports that it speaks of."""

from pathlib import Path

import pytest

from saved_student import folder, saved
from zsaq.io.added import EXPORT, PARITY, check_added, export_digest, read_parity, write_added
from zsaq.io.checksums import fingerprint
from zsaq.report.folder import Contents

__all__ = ["folder", "saved"]


@pytest.fixture
def verified(folder: Path) -> Path:
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"graph")
    write_added(folder / "onnx" / EXPORT, {}, fingerprint(folder))
    facts = {"agrees": True, "exports": {"onnx": export_digest(folder / "onnx"), "../x": "0", "gone": "0"}}
    write_added(folder / PARITY, facts, fingerprint(folder))
    return folder


def test_a_report_of_what_lies_there_is_read(verified: Path) -> None:
    check_added(verified)
    assert read_parity(verified, fingerprint(verified))["agrees"] is True
    (verified / "onnx" / "model.onnx").unlink()
    (verified / "onnx" / EXPORT).unlink()
    (verified / "onnx").rmdir()
    check_added(verified)


@pytest.mark.parametrize("name", ["model.onnx", EXPORT, "more.data"])
def test_a_report_of_an_export_that_was_made_again_is_refused(verified: Path, name: str) -> None:
    path = verified / "onnx" / name
    path.write_bytes((path.read_bytes() if path.exists() else b"") + b" ")
    with pytest.raises(ValueError, match=r"parity\.json is of another export than lies in onnx now: run zsaq verify"):
        check_added(verified)
    assert "another export" in str(Contents.of(verified).parity)


@pytest.mark.parametrize("exports", [[], "onnx", None, {"onnx": 3}])
def test_what_a_report_says_of_exports_may_be_anything(verified: Path, exports: object) -> None:
    write_added(verified / PARITY, {"exports": exports}, fingerprint(verified))
    if isinstance(exports, dict):
        with pytest.raises(ValueError, match="another export"):
            read_parity(verified, None)
    else:
        assert read_parity(verified, None)["exports"] == exports
