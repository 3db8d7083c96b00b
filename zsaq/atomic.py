"""Whole or not there: what is written stands beside its place, is flushed to the disk, and only then renamed."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def beside(target: Path, what: str) -> Path:
    """A hidden name of nobody in the folder of `target`."""
    return target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.{what}")


def flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """A path to write to; it takes the place of the file `target` at the end, unless the block raises.

    The path ends as `target` does, for writers that go by that. The folder of `target` is made.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = beside(target, f"partial{target.suffix}")
    try:
        yield partial
        flush(partial)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> Path:
    """`text` in UTF-8 as the file `target`, whole or not at all; what UTF-8 cannot say becomes a question mark."""
    with atomic_file(target) as partial:
        partial.write_text(text, encoding="utf-8", errors="replace")
    return target


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A path that does not exist, where the block makes a folder; it takes the place of `target`, unless it raises.

    A `target` that exists goes, whole, and only once the new one stands. Its parent is made.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial, former = beside(target, "partial"), beside(target, "former")
    try:
        yield partial
        for path in [*partial.rglob("*"), partial]:
            flush(path)
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
    finally:
        shutil.rmtree(partial, ignore_errors=True)
