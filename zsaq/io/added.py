"""What is added to a saved model later, and names the model that it belongs to: parity report, timings, exports."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from zsaq.atomic import write_text
from zsaq.form import read_json
from zsaq.io.checksums import (
    check_hashes,
    check_sizes,
    checked_entries,
    entry,
    fingerprint,
    is_plain_path,
    mismatch,
    regular_files,
    sealed_files,
    sha256,
)
from zsaq.io.record import read_results
from zsaq.run import RESULTS

EXPORT, PARITY, BENCH = "export.json", "parity.json", "bench.json"
KEY, FILES = "fingerprint", "files"
MODELS: Final = ("*.onnx", "openvino_model.xml", "*.safetensors", "*.gguf")  # what makes a folder an export


def write_added(path: Path, facts: Mapping[str, Any], model: str) -> Path:
    """`facts` as JSON, with the fingerprint of the `model` that they are about."""
    return write_text(path, json.dumps({**facts, KEY: model}, indent=1, allow_nan=False) + "\n")


def read_added(path: Path, model: str | None) -> dict[str, Any]:
    """JSON that nobody has checked, but that it is an object and belongs to `model`; None is any.

    Raises ValueError for everything else, also where there is no such file.
    """
    try:
        facts = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path.name} cannot be read: {error}; make it again") from error
    if model is not None and (problem := mismatch(facts.get(KEY), model)):
        raise ValueError(f"{path.parent.name}/{path.name} {problem}")
    return facts


def write_export(place: Path, facts: Mapping[str, Any], model: str) -> Path:
    """As `write_added`, of the export in the folder `place`, with sizes and hashes of its files as they are now."""
    return write_added(place / EXPORT, {**facts, FILES: {n: entry(p) for n, p in regular_files(place).items()}}, model)


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
    """What the export in the folder `place` says of itself; it is one of the model in the folder around it, which is
    what its manifest says, if it has one.

    Where no model lies around it, as when an export is shipped alone, there is none to compare with. Raises ValueError
    as `read_added` and `check_manifest` do.
    """
    around = place.absolute().parent
    facts = read_added(place / EXPORT, fingerprint(around) if (around / "config.json").is_file() else None)
    sealed_files(around)
    return facts


def sealed_export(place: Path) -> dict[str, Any]:
    """As `read_export`, and every file of the export is what was written. Raises ValueError for others too."""
    facts = read_export(place)
    wanted = checked_entries(facts.get(FILES), f"{place / EXPORT} does not tell what the export consists of")
    present = {name: path for name, path in regular_files(place).items() if name != EXPORT}
    if foreign := sorted(present.keys() - wanted.keys()):
        raise ValueError(f"{place}: {foreign[0]} is foreign, {EXPORT} does not list it; take it away")
    check_sizes(place, EXPORT, wanted, present)
    check_hashes(place, EXPORT, wanted, present)
    return facts


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
