"""A saved model is whole or not there: written beside its place, read back, compared, sealed, then renamed."""

import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from zsaq.io.checksums import MANIFEST, seal
from zsaq.io.loading import load
from zsaq.quant.adapter import packed_state
from zsaq.quant.plan import plan_of


def save(student: PreTrainedModel, folder: str | Path, *parts: Any) -> Path:
    """Save a student, or a loaded model, so that `folder` is whole or as it was; give its path.

    `parts`: tokenizer, image processor and whatever else has `save_pretrained`. All is written to a folder beside it,
    read back, compared tensor by tensor, sealed with a manifest and renamed. A folder that this function has written
    is replaced whole, documents included; any other that is not empty is refused. Raises ValueError for that, for a
    model that is not quantized, and if what was saved does not come back.
    """
    plan_of(student)
    target = Path(folder).absolute()
    if target.exists() and not (target / MANIFEST).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} exists and was not written by zsaq.save: give a new folder, or empty this one")
    target.parent.mkdir(parents=True, exist_ok=True)
    stem = f".{target.name}.{uuid.uuid4().hex[:8]}"
    partial, former = target.with_name(f"{stem}.partial"), target.with_name(f"{stem}.former")
    partial.mkdir()
    try:
        for part in (student, *parts):
            part.save_pretrained(partial)
        seal(partial)
        wrote, read = packed_state(student), packed_state(load(partial, type(student)))
        same = {key for key in wrote.keys() & read.keys() if torch.equal(wrote[key], read[key])}
        if wrong := sorted((wrote.keys() | read.keys()) - same):
            raise ValueError(f"{wrong[:8]} did not come back as saved; nothing was written to {target}")
        settle(partial, former, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def settle(partial: Path, former: Path, target: Path) -> None:
    """Flush `partial` to the disk and put it in the place of `target`, which goes; `former` holds it in between."""
    for path in [*partial.rglob("*"), partial]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    if not target.exists():
        os.rename(partial, target)
        return
    os.rename(target, former)
    try:
        os.rename(partial, target)
    except OSError:
        os.rename(former, target)
        raise
    shutil.rmtree(former)
