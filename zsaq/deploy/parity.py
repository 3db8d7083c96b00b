"""The parity report: that what is deployed computes what was trained, layer by layer and from layer to layer.

A runtime is watched on random inputs (no data): what goes into each quantized layer, and what comes out. Then

- each layer alone: its output is compared with the plain rule in float64, on the very input that it had there;
- between layers: the student runs with each layer's output replaced by the runtime's; what its floats then bring to the
  next layer, and to the logits, is compared with what the runtime's floats brought there.

Everything that a model computes is one or the other, and both agree to float noise. End to end they need not: noise
takes an input across a rounding tie now and then. Such codes are counted; without any, the ends have to agree too.
"""

import os
import platform
import re
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from transformers import PreTrainedModel

from zsaq.atomic import check_file
from zsaq.deploy.comparison import TOLERANCE
from zsaq.deploy.foreign import in_one_line
from zsaq.deploy.runtimes import RUNTIMES, formats
from zsaq.io.added import EXPORT, PARITY, export_digest, read_export, sealed_export, write_added
from zsaq.io.checksums import fingerprint
from zsaq.io.inputs import configs_of, random_inputs, sides_of, text_limit
from zsaq.io.loading import load

SHAPES: Final = ((1, 2), (1, 16), (3, 24))  # batch, tokens
WINDOWS: Final = ("sliding_window", "attention_window", "local_attention", "window_size", "attention_chunk_size")
BEYOND: Final = 8  # tokens more than a window
LONGEST: Final = 1024  # tokens that are checked
HIDDEN: Final = re.compile(r"\..+\.[0-9a-f]{8}\.(partial|former)")  # folders of `zsaq.atomic` beside a place


def windows_of(model: PreTrainedModel) -> list[int]:
    """How many tokens attention reaches back, where the config bounds that."""
    told = [config.get(name) for config in configs_of(model) for name in WINDOWS]
    return sorted(
        {n for entry in told for n in (entry if isinstance(entry, list) else [entry]) if type(n) is int and n > 0}
    )


def batches_of(model: PreTrainedModel, seed: int, size: tuple[int, int] | None = None) -> list[dict[str, Tensor]]:
    """Random tokens, rows of several lengths, so that some are padded, one with a hole in its mask, and one longer than
    each window of attention up to `LONGEST`; or noise as images of that size. No token is so far behind the last that
    is read that its window holds none: each way of computing attention answers there as it likes."""
    if model.main_input_name == "pixel_values":
        return [random_inputs(model, (2,), seed, size)]
    longer = [
        (1, n + BEYOND) for n in windows_of(model) if SHAPES[-1][1] < n + BEYOND <= min(LONGEST, text_limit(model))
    ]
    narrowest = min(windows_of(model), default=2 * LONGEST)
    batches = []
    for i, (rows, length) in enumerate((*SHAPES, *longer)):
        inputs = random_inputs(model, (rows, min(length, text_limit(model))), seed + i, size)
        inputs["attention_mask"][1:2, max(length // 2, length - narrowest // 2) + 1 :] = 0
        inputs["attention_mask"][2:, 3:6] = 0
        batches.append(inputs)
    return batches


def exported_size(folder: Path) -> tuple[int, int] | None:
    """Height and width of the images that the ONNX export in `folder` takes; None where there is none that tells."""
    try:
        sizes = read_export(folder / "onnx")["shapes"]["pixel_values"]
        return sides_of(sizes[1:])
    except (ValueError, LookupError, TypeError):
        return None


def machine() -> dict[str, Any]:
    """Where the numbers were taken: platform, processor, and the version of every package that a runtime needs."""
    versions: dict[str, str | None] = {}
    for package in ("zsaq", "torch", "transformers", *(need for runtime in RUNTIMES for need in runtime.needs)):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {"platform": platform.platform(), "processor": torch.backends.cpu.get_cpu_capability(), "versions": versions}


def elsewhere(folder: Path) -> list[str]:
    """Exports within `folder` that no runtime looks for where they lie, by their paths there."""
    places = set()
    for place, inner, files in os.walk(folder):
        inner[:] = [name for name in inner if HIDDEN.fullmatch(name) is None]  # what a writer has not finished
        if EXPORT in files:
            places.add(Path(place))
    places -= {folder, *(folder / name for name in formats())}
    ours = [place for place in places if place.parent == folder or not (place.parent / "config.json").is_file()]
    return sorted(place.relative_to(folder).as_posix() for place in ours)


def verify(
    folder: str | Path, seed: int = 0, write: bool = True, size: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Check the saved student in `folder` and every export within it, in float32; returns the parity report.

    `agrees` is true if in every runtime each layer is within `tolerance` (relative to its largest output) of its rule,
    and so is what passes between layers, if the files of every export are those that were written, and if none is
    `not_checked`, as those in folders of other names than their formats'. An export of another student disagrees, and
    says so. `not_reached` are windows of attention longer than what is checked. `size`: height and width of images, by
    default those of the ONNX export, else as `zsaq.io.inputs.image_shape` tells. With `write` the report goes into the
    folder, as parity.json. Raises ValueError as `zsaq.load` does, for a model that reads neither text nor images, and
    before anything is computed for a folder that cannot be written to.
    """
    folder = Path(folder)
    if write:
        check_file(folder / PARITY)
    model = load(folder, dtype=torch.float32)
    batches = batches_of(model, seed, exported_size(folder) if size is None else size)
    longest = max(value.shape[1] for batch in batches for value in batch.values())
    parts: dict[str, dict[str, Any]] = {}
    for runtime in RUNTIMES:
        if runtime.check is not None and (folder / runtime.place).exists():
            try:
                with in_one_line(model, f"does not run in {runtime.name}", "export it again"):
                    parts[runtime.name] = runtime.check(model, folder, batches)
                if runtime.write is not None and parts[runtime.name]["agrees"]:
                    sealed_export(folder / runtime.place)  # what it holds beside what was computed with, too
            except ValueError as error:
                parts[runtime.name] = {"agrees": False, "error": str(error)}
    unchecked = elsewhere(folder)
    report = {
        "agrees": not unchecked and all(part["agrees"] for part in parts.values()),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "tolerance": TOLERANCE,
        "seed": seed,
        "inputs": [{name: list(value.shape) for name, value in batch.items()} for batch in batches],
        "not_reached": [] if "pixel_values" in batches[0] else [n for n in windows_of(model) if n >= longest],
        "not_checked": unchecked,
        "machine": machine(),
        "exports": {name: export_digest(folder / name) for name in formats() if (folder / name).is_dir()},
        **parts,
    }
    if write:
        write_added(folder / PARITY, report, fingerprint(folder))
    return report
