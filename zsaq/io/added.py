"""What is added to a saved model later, and names the model that it belongs to: parity report, timings, exports."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from zsaq.atomic import write_text
from zsaq.form import read_json
from zsaq.io.checksums import fingerprint, mismatch
from zsaq.io.record import read_results
from zsaq.run import RESULTS

EXPORT, PARITY, BENCH = "export.json", "parity.json", "bench.json"
KEY: Final = "fingerprint"
MODELS: Final = ("*.onnx", "*.safetensors")  # what makes a folder an export


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
    for path in (folder / PARITY, folder / BENCH):
        if path.exists():
            read_added(path, model)
    for place in sorted({path.parent for kind in MODELS for path in folder.rglob(kind)} - {folder}):
        read_added(place / EXPORT, model)
