"""Where something may be saved, asked before anything is spent: what lies there, and whether it can be written."""

import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from torch import nn

from zsaq.atomic import check_room
from zsaq.io.checksums import MANIFEST, read_manifest
from zsaq.quant.placing import METHOD, is_own, method_in

RUNS: Final = ("runs.jsonl", "table.md", "table.csv", "table.png", "steps", "checkpoints")  # of a comparison


def check_target(folder: str | Path) -> Path:
    """Where a model may be saved: a new folder, an empty one, or one that `save` has written; its path, links resolved.

    Raises ValueError for anything else: one where another model lies, or a student beside something that is neither a
    part of it nor made of it; and for a folder that cannot be replaced, as it is a disk of its own or the one where
    this process stands.
    """
    target = placed(folder)
    if not os.path.lexists(target):
        return target
    foreign = f"{target} exists and was not written by zsaq.save: give a new folder, or empty this one"
    if not target.is_dir():
        raise ValueError(foreign)
    held = sorted(target.iterdir())
    if held and (not (target / MANIFEST).is_file() or method_in(target) not in (METHOD, None)):
        raise ValueError(foreign)
    listed: set[str] | None = None
    with suppress(ValueError):  # no manifest yet, or a damaged one, which goes, too
        listed = {name.split("/")[0] for name in read_manifest(target / MANIFEST)["files"]}
    if others := [path.name for path in held if not is_own(path, listed)]:
        raise ValueError(
            f"{target} holds a student of zsaq and {others[0]}, which would be lost: take that away, or give a new "
            "folder"
        )
    if target.is_mount():
        raise ValueError(f"{target} is a disk of its own, which cannot be replaced: give a folder within it")
    with suppress(FileNotFoundError):
        if Path.cwd().is_relative_to(target):
            raise ValueError(f"{target} is where you are, which cannot be replaced: give a folder within it")
    return target


def check_comparison(folder: str | Path) -> Path:
    """Where a comparison may be kept: a new folder, an empty one, or one of a comparison. Raises ValueError."""
    target = placed(folder)
    there = os.listdir(target) if os.path.isdir(target) else []
    held = sorted(name for name in there if not name.startswith("."))
    ours = RUNS if RUNS[0] in held else RUNS[-2:]  # before the first run ends there are its steps alone
    others = [name for name in held if name not in ours]
    if others or (os.path.lexists(target) and not target.is_dir()):
        held_too = f" (it holds {others[0]})" if others else ""
        raise ValueError(f"{target} exists and was not made by zsaq.compare{held_too}: give a new folder")
    return target


def placed(folder: str | Path) -> Path:
    """An absolute path, in the user's home where it says so; of a link the place that it leads to. Raises ValueError
    for empty text and for what leads nowhere."""
    if not str(folder):
        raise ValueError("the folder to save to is empty text: give a name")
    try:
        return Path(folder).expanduser().resolve()
    except (RuntimeError, OSError, ValueError) as error:  # a circle of links, a home of nobody, no text of a path
        raise ValueError(f"{folder} leads nowhere ({error}): give another folder") from error


def new_folder(*parts: str) -> str:
    """Where a student goes for which no folder was given, named after its parts. Raises ValueError for one that is
    there already."""
    folder = "-".join(re.sub(r"[^\w.-]+", "-", part).strip("-") for part in parts)
    if os.path.lexists(folder):
        raise ValueError(f"{folder} is there already: give another folder as --output_dir")
    return folder


def ready_target(folder: str | Path, size: int = 0) -> Path:
    """`check_target`, and `size` bytes can be written there and in the temporary folder, which is tried.

    Raises ValueError.
    """
    target, temporary = check_target(folder), Path(tempfile.gettempdir())
    check_room(target, size)
    try:
        check_room(temporary / "zsaq", size)
    except ValueError as error:
        raise ValueError(f"{error}; TMPDIR names another temporary folder") from error
    return target


def ready_comparison(folder: str | Path) -> Path:
    """`check_comparison`, and it can be written there, which is tried. Raises ValueError."""
    target = check_comparison(folder)
    check_room(target / RUNS[0])
    return target


def ready_new(folder: str | Path, size: int = 0) -> Path:
    """A folder that does not exist, or an empty one, where `size` bytes can be written. Raises ValueError."""
    target = placed(folder)
    if os.path.lexists(target) and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} exists and is not empty: give a new folder")
    check_room(target, size)
    return target


def float_bytes(model: Any) -> int:
    """Bytes of a float model as saved, which bounds those of its student: of a module, a folder, or a Hub id that is in
    the cache; 0 where nothing is known yet."""
    if isinstance(model, nn.Module):
        return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    if not isinstance(model, str | Path):
        return 0
    folder = Path(os.path.expanduser(model))
    if not folder.is_dir():
        with suppress(HFValidationError):
            config = try_to_load_from_cache(str(model), "config.json")
            folder = Path(config).parent if isinstance(config, str) else folder
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) if folder.is_dir() else 0
