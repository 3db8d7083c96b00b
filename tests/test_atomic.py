"""Files and folders are whole or not there: leftovers of the killed, modes, two writers, what a disk refuses."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

import zsaq.atomic
from full_disks import forbid, small_disk
from zsaq.atomic import atomic_file, atomic_folder, check_file, check_room, claimed, former_of, write_text

KEPT = (".model.txt", ".other.0123abcd.partial", ".model.0123abcd.backup", ".model.0123.former", "model.old")


def fill(folder: Path, text: str) -> None:
    folder.mkdir()
    for name in ("a", "b"):
        (folder / name).write_text(text)


def put(target: Path, text: str) -> None:
    with atomic_folder(target) as partial:
        fill(partial, text)


def held(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def texts(folder: Path) -> set[str]:
    return {path.read_text() for path in folder.iterdir()}


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.parametrize(("mask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700), (2, 0o664, 0o775)])
def test_modes_are_those_of_the_umask(tmp_path: Path, umask: None, mask: int, file: int, folder: int) -> None:
    os.umask(mask)
    with atomic_folder(tmp_path / "model") as partial:
        fill(partial, "new")
        partial.chmod(0o700)
        (partial / "a").chmod(0o600)  # as tempfile and safetensors make them
        (partial / "deep").mkdir(0o700)
    with atomic_file(tmp_path / "x.json") as partial:
        partial.write_text("")
        partial.chmod(0o600)
    modes = {path.relative_to(tmp_path).as_posix(): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {"model": folder, "model/deep": folder, "model/a": file, "model/b": file, "x.json": file}


def test_the_next_writer_sweeps_what_a_killed_one_left(tmp_path: Path) -> None:
    for name in (*KEPT, ".model.0123abcd.lock", ".x.json.0123abcd.partial.json"):
        (tmp_path / name).write_text("")
    for name in (".model.0123abcd.partial", ".model.0123abcd.former", ".model.feedbeef.former"):
        fill(tmp_path / name, "old")
    assert former_of(tmp_path / "model") in {tmp_path / f".model.{stem}.former" for stem in ("0123abcd", "feedbeef")}
    with pytest.raises(ValueError, match="no"), atomic_folder(tmp_path / "model"):
        raise ValueError("no")
    assert former_of(tmp_path / "model") is not None, "the only copy"
    assert not [name for name in held(tmp_path) if name.startswith(".model") and name.endswith((".partial", ".lock"))]
    put(tmp_path / "model", "new")
    write_text(tmp_path / "x.json", "new")
    assert held(tmp_path) == sorted([*KEPT, "model", "x.json"]) and former_of(tmp_path / "model") is None


def test_a_writer_at_work_is_left_alone(tmp_path: Path) -> None:
    with claimed(tmp_path / "model") as (stem, _):
        for kind in ("partial", "former"):
            fill(tmp_path / f"{stem}.{kind}", "theirs")
        put(tmp_path / "model", "mine")
        assert held(tmp_path) == sorted([f"{stem}.{kind}" for kind in ("lock", "partial", "former")] + ["model"])
    put(tmp_path / "model", "mine")
    assert held(tmp_path) == ["model"]


def test_without_locks_nothing_is_swept_and_all_else_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr("zsaq.locks.fcntl.flock", no_locks)
    (tmp_path / ".model.0123abcd.lock").write_text("")
    put(tmp_path / "model", "new")
    assert held(tmp_path) == [".model.0123abcd.lock", "model"]


def test_of_two_writers_the_last_one_wins_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for _ in range(2):  # once where nothing lies, once where something does
        with atomic_folder(target) as partial:
            fill(partial, "first begun")
            put(target, "first ended")
            assert texts(target) == {"first ended"}
        assert texts(target) == {"first begun"} and held(tmp_path) == ["model"]


def test_a_writer_between_the_renames_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, rename = tmp_path / "model", os.rename
    put(target, "old")

    def interrupted(source: Path, place: Path) -> None:
        rename(source, place)
        if Path(place).suffix == ".former" and texts(Path(place)) == {"old"}:
            put(target, "theirs")

    monkeypatch.setattr(zsaq.atomic.os, "rename", interrupted)
    put(target, "mine")
    assert texts(target) == {"mine"} and held(tmp_path) == ["model"]


def test_what_came_meanwhile_may_be_refused(tmp_path: Path) -> None:
    def refuse(target: Path) -> None:
        if target.exists():
            raise ValueError("occupied")

    with pytest.raises(ValueError, match="occupied"), atomic_folder(tmp_path / "model", refuse) as partial:
        fill(partial, "mine")
        fill(tmp_path / "model", "theirs")
    assert texts(tmp_path / "model") == {"theirs"} and held(tmp_path) == ["model"]


@pytest.mark.parametrize("error", [SafetensorError("I/O error: full (os error 28)"), OSError(errno.ENOSPC, "full")])
def test_a_full_disk_is_told_with_its_place(tmp_path: Path, error: Exception) -> None:
    for context in (atomic_file, atomic_folder):
        match = r"model cannot be written \(No space left on device\): free some"
        with pytest.raises(OSError, match=match) as told, context(tmp_path / "model"):
            raise error
        assert told.value.errno == errno.ENOSPC and held(tmp_path) == []


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    for error in (
        SafetensorError("no such dtype"),
        FileNotFoundError(2, "no", "/else/where"),
        PermissionError(13, "no", "/x"),
    ):
        with pytest.raises(type(error)) as same, atomic_folder(tmp_path / "model"):
            raise error
        assert same.value is error


def test_room_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    check_room(tmp_path / "deep" / "er" / "model")
    check_file(tmp_path / "new" / "x.json")
    with pytest.raises(ValueError, match=r"99,[\d,]+ bytes may be written, and [\d,]+ are free: give another folder"):
        check_room(tmp_path / "model", 99 * 10**15)
    for place in (tmp_path / "file" / "model", tmp_path / ("x" * 250), Path("/proc/nowhere/model")):
        with pytest.raises(ValueError, match="cannot be written"):
            check_room(place)
    with pytest.raises(ValueError, match="is a folder"):
        check_file(tmp_path)
    with small_disk(0), pytest.raises(ValueError, match="cannot be written"):
        check_room(tmp_path / "model")
    forbid(monkeypatch, tmp_path)
    with pytest.raises(ValueError, match=r"cannot be written \(Read-only file system\): give another folder"):
        check_room(tmp_path / "deep" / "model")
    assert held(tmp_path) == ["file"]


WRITER = """
import itertools, sys, types
from pathlib import Path
package = sys.modules["zsaq"] = types.ModuleType("zsaq")  # whose import takes seconds
package.__path__ = [str(Path(sys.argv[1]).parent)]
from zsaq import atomic
print("begun", flush=True)
for number in itertools.count():
    with atomic.atomic_folder(Path(sys.argv[2])) as partial:
        partial.mkdir()
        for name in "ab":
            (partial / name).write_text(f"{sys.argv[3]} {number}")
"""


def writer(target: Path, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, zsaq.atomic.__file__, str(target), name]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    return process


def test_a_former_folder_that_is_half_gone_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "model"
    put(target, "first")

    def killed(path: Path, *_: Any, **__: Any) -> None:
        if path.exists():
            next(path.iterdir()).unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(shutil, "rmtree", killed)
        put(target, "second")
    assert former_of(target) is None and texts(target) == {"second"}
    put(target, "third")
    assert held(tmp_path) == ["model"]


def test_two_processes_that_are_killed_leave_a_whole_folder(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for turn in range(6):
        writers = [writer(target, name) for name in ("one", "other")]
        time.sleep(0.02 + 0.03 * turn)
        for process in writers:
            assert process.poll() is None, "a writer tripped over the other"
            process.send_signal(signal.SIGKILL)
            process.communicate()
        place = target if target.exists() else former_of(target)
        assert place is None or (len(texts(place)) == 1 and held(place) == ["a", "b"]), "whole"
    put(target, "last")
    assert texts(target) == {"last"} and held(tmp_path) == ["model"]


def test_what_was_written_within_what_was_written_is_swept_too(tmp_path: Path) -> None:
    target = tmp_path / "model"
    names = ("model", "other")
    stems = [stem for name in names for stem in (f".{name}.0123abcd", f"..{name}.0123abcd.partial.4567cdef")]
    for stem in stems:
        (tmp_path / f"{stem}.partial").mkdir()
        (tmp_path / f"{stem}.lock").touch()
    with atomic_folder(target) as partial:
        partial.mkdir()
    assert sorted(path.name for path in tmp_path.iterdir() if "model" in path.name) == ["model"]
    assert len(list(tmp_path.iterdir())) == 5, "those of another place are its own"
