"""What cannot be saved is found before the first step, and what fails at the end all the same is not lost."""

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

sys.path.insert(0, str(Path(__file__).parent.parent / "recipes"))

from examples.cache import made_once

import zsaq
from full_disks import forbid
from language_toys import bert, wordpiece
from saved_student import folder, names, saved
from students import TEACHERS
from zsaq import launch
from zsaq.deploy.bench import bench
from zsaq.deploy.parity import verify
from zsaq.deploy.runtimes import export
from zsaq.io import rescue, target
from zsaq.io.target import check_comparison, check_target, float_bytes, ready_comparison, ready_new, ready_target
from zsaq.report.folder import report

__all__ = ["folder", "saved"]


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("a step was taken")


def quantize(place: Path, **options: Any) -> Any:
    return launch.run(bert(wordpiece()), "w4a8", place, tokenizer=wordpiece(), **{"method": never, **options})


def test_a_tokenizer_that_was_saved_beside_a_student_goes_with_it(folder: Path) -> None:
    student, tokenizer = zsaq.load(folder), wordpiece()
    for _ in range(2):
        zsaq.save(student, folder)
        tokenizer.save_pretrained(folder)
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(folder)
    zsaq.save(student, folder, tokenizer)
    assert (folder / "chat_template.jinja").is_file()


NAMESAKES = (  # of what a student holds, and of what is made of one
    *("mine.safetensors", "my.model", "pytorch_model.bin", "vocab.csv", "pictures/holiday.jpg", "gguf/my.gguf"),
    *("adapter_config.json", "openvino/notes.md"),
)


@pytest.mark.parametrize(
    "foreign", ["thesis.txt", "notes/a.md", "training_args.bin", ".git/config", "private.jsonl", *NAMESAKES]
)
def test_a_student_beside_something_else_is_not_replaced(folder: Path, foreign: str) -> None:
    ours = ("onnx/export.json", "onnx/model.onnx", "mine/export.json", "README.md", "curves.png")
    drawn = ("pictures/images.png", "pictures/spectrum.png", "pictures/second/losses.png", "pictures/.DS_Store")
    for name in (foreign, *ours, *drawn, ".results.json.0123abcd.partial.json"):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text("{}")
    with pytest.raises(ValueError, match=rf"holds a student of zsaq and {foreign.split('/')[0]}, which would be lost"):
        quantize(folder)
    (folder / foreign).unlink()
    if "/" in foreign and not any((folder / foreign).parent.iterdir()):
        (folder / foreign).parent.rmdir()
    assert check_target(folder) == folder


def test_a_float_model_over_a_student_is_not_replaced_and_a_damaged_student_is(folder: Path) -> None:
    (folder / "model.safetensors").write_text("damaged")
    (folder / "zsaq_manifest.json").write_text("damaged")
    assert check_target(folder) == folder
    TEACHERS["bert"]().save_pretrained(folder)
    with pytest.raises(ValueError, match=r"was not written by zsaq\.save"):
        quantize(folder)


def test_a_folder_that_cannot_be_renamed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path / "model")
    for place in (".", "../model", tmp_path):
        with pytest.raises(ValueError, match=r"is where you are|was not written by"):
            quantize(Path(place))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "is_mount", lambda self: self.name == "model")
    with pytest.raises(ValueError, match="a disk of its own"):
        quantize(tmp_path / "model")


PLACES: dict[str, Callable[[Path], Any]] = {
    "run": quantize,
    "compare": lambda place: zsaq.compare(bert(wordpiece()), ["w4a8"], [never], tokenizer=wordpiece(), folder=place),
    "new": ready_new,
    "cache": lambda place: made_once(place.parent, place.name, never),
}


@pytest.mark.parametrize("what", PLACES)
def test_a_folder_that_cannot_be_written_is_found_first(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "model", Path("/proc/nowhere/model"), tmp_path / ("x" * 300)):
        with pytest.raises(ValueError, match=r"cannot be written|exists and"):
            PLACES[what](place)
    forbid(monkeypatch, tmp_path)
    with pytest.raises(ValueError, match=r"cannot be written \(Read-only file system\): give another folder"):
        PLACES[what](tmp_path / "deep" / "model")
    assert names(tmp_path) == ["file"]


def test_a_cache_names_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    forbid(monkeypatch, tmp_path, errno.EACCES)
    with pytest.raises(ValueError, match=r"\(Permission denied\).*; XDG_CACHE_HOME names another folder for caches"):
        made_once(None, "digits", never)


def test_a_disk_too_small_for_the_float_model_is_found_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = bert(wordpiece())
    model.save_pretrained(tmp_path / "float")
    size = float_bytes(model)
    assert size <= float_bytes(tmp_path / "float") < size + 10_000 and float_bytes("no/such") == float_bytes(3) == 0
    usage = type("Usage", (), {"free": size - 1})
    monkeypatch.setattr("zsaq.atomic.shutil.disk_usage", lambda _: usage)
    for source in (model, tmp_path / "float"):
        with pytest.raises(ValueError, match=r"bytes may be written, and .* are free"):
            launch.run(source, "w4a8", tmp_path / "out", method=never)
    temporary = str(target.tempfile.gettempdir())
    free = {True: usage, False: type("Usage", (), {"free": 10**12})}
    monkeypatch.setattr("zsaq.atomic.shutil.disk_usage", lambda place: free[str(place) == temporary])
    with pytest.raises(ValueError, match="TMPDIR names another temporary folder"):
        ready_target(tmp_path / "out", size)
    assert names(tmp_path) == ["float"]


@pytest.mark.parametrize("held", [["thesis.txt"], ["config.json", "runs.jsonl"], ["table.md"], ["steps", "a.csv"]])
def test_a_comparison_goes_where_nothing_else_lies(tmp_path: Path, held: list[str]) -> None:
    for name in held:
        (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match=r"was not made by zsaq\.compare \(it holds"):
        PLACES["compare"](tmp_path)
    assert names(tmp_path) == sorted(held)
    with pytest.raises(ValueError, match="was not made by"):
        check_comparison(tmp_path / held[0])


def test_a_comparison_goes_on_in_its_own_folder(tmp_path: Path) -> None:
    for name in ("steps", "runs.jsonl", "table.md", "table.csv", "table.png", ".hidden"):
        (tmp_path / name).write_text("")
        assert name.startswith("table") or ready_comparison(tmp_path) == tmp_path


def test_reports_and_exports_are_refused_first_where_they_cannot_be_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid(monkeypatch, folder)
    for module in ("parity", "bench", "compressed.write", "onnx.write"):
        monkeypatch.setattr(f"zsaq.deploy.{module}.load", never)
    works: list[Callable[[], Any]] = [
        lambda: verify(folder), lambda: report(folder), lambda: export(folder, "onnx"),
        lambda: bench(folder, write=True),
    ]  # fmt: skip
    for work in works:
        with pytest.raises(ValueError, match="cannot be written"):
            work()


def rtn(place: Path) -> Any:
    return quantize(place, method="rtn")


def test_a_student_whose_place_is_taken_meanwhile_goes_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def occupied(job: Any, config: Any, *_: Any) -> PreTrainedModel:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.txt").write_text("mine")
        return zsaq.quantize_model(job.teacher, config)

    (tmp_path / "out-rescued").write_text("something")
    with pytest.raises(ValueError, match=r"was not written by.* The student is in .*out-rescued-2$"):
        quantize(tmp_path / "out", method=occupied)
    assert zsaq.load(tmp_path / "out-rescued-2") and names(tmp_path / "out") == ["thesis.txt"]


def test_a_student_that_cannot_be_saved_beside_goes_to_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(rescue.tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))

    def full(job: Any, config: Any, *_: Any) -> PreTrainedModel:
        forbid(monkeypatch, tmp_path / "full", errno.ENOSPC)
        return zsaq.quantize_model(job.teacher, config)

    with pytest.raises(OSError, match=r"out cannot be written \(No space left.* The student is in .*temporary/out-r"):
        quantize(tmp_path / "full" / "out", method=full)
    assert zsaq.load(tmp_path / "temporary" / "out-rescued") and names(tmp_path / "full") == ["out-checkpoint"]


def test_what_can_be_saved_nowhere_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path) -> None:
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match=r"full\. It could be saved nowhere else"):
        rescue.save_or_rescue(fail, tmp_path / "out")


def test_load_tells_of_the_former_one(folder: Path) -> None:
    former = folder.with_name(f".{folder.name}.0123abcd.former")
    os.rename(folder, former)
    with pytest.raises(ValueError, match=r"no model lies at .*0123abcd\.former holds what lay there before\. Rename"):
        zsaq.load(folder)
    os.rename(former, folder)
    zsaq.load(folder)


def test_a_session_refuses_its_folder_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    TEACHERS["bert"]().save_pretrained(tmp_path)
    capsys.readouterr()
    flags = launch.parser("text", "w4a8", "toy"), launch.table_parser("text", "w4a8", "language")
    for parser, words in zip(flags, ([], ["--methods", "rtn"]), strict=True):
        args = launch.parse(parser, [*words, "--output_dir", str(tmp_path)])
        with pytest.raises(SystemExit) as left, launch.session(args):
            never()
        told = capsys.readouterr().err
        assert left.value.code == 2 and told.count("\n") == 1 and "give a new folder" in told


def test_trackers_write_beside_the_student(tmp_path: Path) -> None:
    args = launch.parse(launch.parser("text", "w4a8", "toy"), ["--output_dir", str(tmp_path / "out")])
    with launch.session(args) as loop:
        assert loop.accelerator.project_dir == f"{tmp_path / 'out'}-trackers"
