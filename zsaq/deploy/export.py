"""The same integer codes for other runtimes: `export` writes them, nothing is quantized anew."""

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

from zsaq.deploy.compressed.write import to_compressed
from zsaq.deploy.onnx.write import to_onnx
from zsaq.io.checksums import MANIFEST, check, seal

Format = Literal["onnx", "compressed-tensors"]
WRITERS: Final[dict[str, Callable[[Path, Path], dict[str, Any]]]] = {
    "onnx": to_onnx,
    "compressed-tensors": to_compressed,
}


def export(source: str | Path, to: Format, target: str | Path | None = None) -> dict[str, Any]:
    """Write the saved student in the folder `source` for another runtime; returns facts about what was written.

    "onnx": ONNX Runtime; "compressed-tensors": stock transformers, and vLLM where it has the kernels. `target` is a new
    folder, by default one called like the format within `source`, which is then sealed again if it was. The folder
    appears whole or not at all. Raises ValueError for another format, a source that is no folder, an existing target, a
    manifest that does not match, and a rule that the runtime does not have, by the layer's name.
    """
    if to not in WRITERS:
        raise ValueError(f"to is {to!r}; give one of {tuple(WRITERS)}")
    source = Path(source)
    if not source.is_dir():
        raise ValueError(f"{source} is no folder; give the folder of a saved student")
    place = source / to if target is None else Path(target)
    if os.path.lexists(place):
        raise ValueError(f"{place} exists; remove it or give another target")
    if sealed := (source / MANIFEST).is_file():
        check(source)
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}")
    try:
        facts = WRITERS[to](source, partial)
        partial.rename(place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if sealed and place.resolve().is_relative_to(source.resolve()):
        try:
            seal(source)
        except BaseException:  # the manifest does not know the export, so nobody could load the student
            shutil.rmtree(place, ignore_errors=True)
            raise
    return facts
