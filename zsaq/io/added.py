"""What is added to a saved model later, and names the model that it belongs to: parity report, timings, exports."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from zsaq.atomic import write_text
from zsaq.io.checksums import fingerprint, is_plain_path, mismatch, sha256
from zsaq.io.record import read_results
from zsaq.run import RESULTS

EXPORT, PARITY, BENCH = "export.json", "parity.json", "bench.json"
KEY: Final = "fingerprint"
LARGEST: Final = 2**24  # bytes of a file that is read
MODELS: Final = ("*.onnx", "*.safetensors")  # what makes a folder an export


def write_added(path: Path, facts: Mapping[str, Any], model: str) -> Path:
    """`facts` as JSON, with the fingerprint of the `model` that they are about."""
    return write_text(path, json.dumps({**facts, KEY: model}, indent=1, allow_nan=False) + "\n")


def read_added(path: Path, model: str | None) -> dict[str, Any]:
    """JSON that nobody has checked, but that it is an object and belongs to `model`; None is any.

    Raises ValueError for everything else, also where there is no such file.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it has {path.stat().st_size:,} bytes, more than {LARGEST:,} are not read")
        facts = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} cannot be read: {error}; make it again") from error
    if not isinstance(facts, dict):
        raise ValueError(f"{path.name} cannot be read: it is no object; make it again")
    if model is not None and (problem := mismatch(facts.get(KEY), model)):
        raise ValueError(f"{path.parent.name}/{path.name} {problem}")
    return facts


def export_digest(place: Path) -> str:
    """sha256 over the names and bytes of an export's files."""
    files = [path for path in sorted(place.rglob("*")) if path.is_file()]
    text = "".join(f"{path.relative_to(place).as_posix()} {sha256(path)}\n" for path in files)
    return hashlib.sha256(text.encode()).hexdigest()


def read_parity(folder: Path, model: str | None) -> dict[str, Any]:
    """parity.json of the model in `folder`, as `read_added`, which is also of the exports that lie there now."""
    facts = read_added(folder / PARITY, model)
    exports: Any = facts.get("exports", {})
    for name, digest in exports.items() if isinstance(exports, dict) else ():
        if is_plain_path(name) and (folder / name).is_dir() and export_digest(folder / name) != digest:
            raise ValueError(f"{PARITY} is of another export than lies in {name} now: run zsaq verify {folder} again")
    return facts


def read_export(place: Path) -> dict[str, Any]:
    """What the export in the folder `place` says of itself; it is one of the model in the folder around it.

    Where no model lies around it, as when an export is shipped alone, there is none to compare with. Raises ValueError
    as `read_added` does.
    """
    around = place.absolute().parent
    return read_added(place / EXPORT, fingerprint(around) if (around / "config.json").is_file() else None)


def check_added(folder: Path) -> None:
    """Raises ValueError for the first file or export in `folder` that is not of the model there, or cannot be read."""
    model = fingerprint(folder)
    if (folder / RESULTS).exists():
        read_results(folder, model)
    if (folder / PARITY).exists():
        read_parity(folder, model)
    if (folder / BENCH).exists():
        read_added(folder / BENCH, model)
    for place in sorted({path.parent for kind in MODELS for path in folder.rglob(kind)} - {folder}):
        read_added(place / EXPORT, model)
