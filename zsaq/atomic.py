"""Whole or not there: what is written stands beside its place, is flushed to the disk, and only then renamed.

Beside a place called `name` there are then, hidden, `.name.<8 hex>.partial`, what is being written,
`.name.<8 hex>.former`, what lay there before, and `.name.<8 hex>.lock`, which the writer holds. Who was killed holds
nothing: the next writer to the place takes away what was left. Files and folders get the modes that the umask says.
"""

import errno
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError

from zsaq.locks import hold

REFUSED: Final = {  # what a disk says to who writes; the rest is told as it is
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)
}
OCCUPIED: Final = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}  # by a folder that is not empty, or by a file


@contextmanager
def told(place: Path) -> Iterator[None]:
    """Turns what the disk refuses, also to safetensors, into an OSError that says what could not be written there."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number, file = getattr(error, "errno", None), getattr(error, "filename", None)
        if isinstance(error, SafetensorError) and (found := re.search(r"os error (\d+)", str(error))):
            number = int(found[1])
        if number not in REFUSED or (file is not None and not Path(file).is_relative_to(place.parent)):
            raise
        remedy = "free some space or make it writable there, or give another place"
        raise OSError(number, f"{place} cannot be written ({os.strerror(number)}): {remedy}") from error


@contextmanager
def claimed(target: Path) -> Iterator[tuple[str, int]]:
    """The start of hidden names beside `target`, this writer's alone, and the mode of a new file; makes its folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    while True:
        stem = f".{target.name}.{uuid.uuid4().hex[:8]}"
        lock = target.with_name(f"{stem}.lock")
        handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        try:
            hold(handle)
        except BlockingIOError:  # another writer takes it for a leftover
            os.close(handle)
            continue
        except OSError:
            pass  # a file system without locks; nobody else gets one either
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(lock)):
                break
        os.close(handle)
    try:
        yield stem, os.fstat(handle).st_mode & 0o777
    finally:
        lock.unlink(missing_ok=True)
        os.close(handle)


def leftovers(target: Path) -> dict[str, list[Path]]:
    """What lies beside `target` by the names of this module, by writer, or by one within what another writes."""
    own = r"\.[0-9a-f]{8}"
    name = re.compile(rf"(\.+{re.escape(target.name)}(?:{own}\.partial)*{own})\.(partial(?:\.\w+)?|former|lock)")
    found: dict[str, list[Path]] = {}
    with suppress(OSError):  # no folder, or one that others alone may read
        for path in target.parent.iterdir():
            if match := name.fullmatch(path.name):
                found.setdefault(match[1], []).append(path)
    return found


def sweep(target: Path, formers: bool) -> None:
    """Take away what writers to `target` that were killed have left; with `formers` also what they had replaced."""
    for stem, paths in leftovers(target).items():
        # Not of a writer at work, nor of another user, nor gone already.
        with suppress(OSError), unheld(target.with_name(f"{stem}.lock")):
            for path in paths:
                if path.suffix != ".former" or formers:
                    remove(path)


def remove(path: Path) -> None:
    """Take away a file, a link or a folder; what was replaced by another name, so that half of it is not for whole."""
    if path.suffix == ".former":
        path = path.rename(path.with_name(f"{path.name.removesuffix('former')}partial.gone"))
    (shutil.rmtree if path.is_dir() and not path.is_symlink() else os.unlink)(path)


@contextmanager
def unheld(lock: Path) -> Iterator[None]:
    """Inside, nobody else holds the lock. Raises OSError where somebody does; no file is no lock."""
    try:
        handle = os.open(lock, os.O_RDWR)
    except FileNotFoundError:
        yield
        return
    try:
        hold(handle)
        yield
    finally:
        os.close(handle)


def former_of(target: Path) -> Path | None:
    """The last folder that lay at `target` before a writer was killed between two renames, None for none."""
    formers = [path for paths in leftovers(target).values() for path in paths if path.suffix == ".former"]
    return max(formers, key=lambda path: path.stat().st_mtime, default=None)


def settle(path: Path, mode: int) -> None:
    """Give a new file or folder at least the `mode` that files get here, and see it on the disk."""
    wanted = mode | (mode & 0o444) >> 2 if path.is_dir() else mode
    has = path.stat().st_mode & 0o7777
    if has | wanted != has:
        path.chmod(has | wanted)
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def settle_all(folder: Path, mode: int) -> None:
    for path in [*folder.rglob("*"), folder]:
        settle(path, mode)


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """A path to write to; it takes the place of the file `target` at the end, unless the block raises. It ends as
    `target` does, whose folder is made. Raises OSError for what the disk refuses."""
    with told(target), claimed(target) as (stem, mode):
        partial = target.with_name(f"{stem}.partial{target.suffix}")
        try:
            yield partial
            settle(partial, mode)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
        sweep(target, formers=False)


def write_text(target: Path, text: str) -> Path:
    """`text` in UTF-8 as the file `target`, whole or not at all; what UTF-8 cannot say becomes a question mark."""
    with atomic_file(target) as partial:
        partial.write_text(text, encoding="utf-8", errors="replace")
    return target


@contextmanager
def beside(target: Path) -> Iterator[tuple[Path, Path, int]]:
    """Two hidden paths beside `target` that do not exist, for what is made there and for what it replaces, and the mode
    of a new file; the first is taken away at the end. The parent is made. Raises OSError for what the disk refuses."""
    with told(target), claimed(target) as (stem, mode):
        sweep(target, formers=False)
        partial, former = (target.with_name(f"{stem}.{what}") for what in ("partial", "former"))
        try:
            yield partial, former, mode
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def atomic_folder(target: Path, check: Callable[[Path], Any] | None = None) -> Iterator[Path]:
    """A path that does not exist, where the block makes a folder; it takes the place of `target`, unless it raises.

    A `target` that exists goes, whole, and only once the new one stands; `check` of it, by default nothing, may refuse
    that. Its parent is made. Of several writers the last one wins, whole. Raises OSError for what the disk refuses.
    """
    with beside(target) as (partial, former, mode):
        yield partial
        settle_all(partial, mode)
        if check is not None:
            check(target)
        try:
            while not moved(partial, target):
                with suppress(OSError):
                    remove(former)  # another writer has been faster: its folder goes, too
                with suppress(FileNotFoundError):
                    os.rename(target, former)
        except BaseException:
            if former.exists() and not os.path.lexists(target):
                os.rename(former, target)
            raise
        with suppress(OSError):
            remove(former)
        sweep(target, formers=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside, no other process is inside for this folder; on file systems without locks of folders it may be."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            hold(handle, wait=True)
        yield
    finally:
        os.close(handle)


def moved(source: Path, target: Path) -> bool:
    """Whether the folder `source` is now at `target`, where there was none or an empty one."""
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno not in OCCUPIED:
            raise
        return False
    return True


def check_file(target: Path) -> Path:
    """The path of a file that can be written, which is tried. Raises ValueError."""
    if target.is_dir():
        raise ValueError(f"{target} is a folder: give the name of a file")
    check_room(target)
    return target


def check_room(target: Path, size: int = 0) -> None:
    """Raises ValueError if nothing of `size` bytes could be written at `target`, by trying it. Leaves nothing there."""
    remedy = "give another folder, or make room there and the right to write"
    try:
        folder = next(parent for parent in target.parents if os.path.lexists(parent))
        with suppress(FileNotFoundError):
            target.lstat()  # refuses names that are too long
        with claimed(folder / target.name) as (stem, _):
            probe = folder / f"{stem}.partial"
            try:
                probe.mkdir()
                (probe / "probe").write_bytes(bytes(4096))
            finally:
                shutil.rmtree(probe, ignore_errors=True)
        free = shutil.disk_usage(folder).free
    except (OSError, ValueError) as error:  # the latter for what is no path
        why = getattr(error, "strerror", None) or error
        raise ValueError(f"{str(target)!r:.200} cannot be written ({why}): {remedy}") from error
    if free < size:
        raise ValueError(f"{target}: {size:,} bytes may be written, and {free:,} are free: {remedy}")
