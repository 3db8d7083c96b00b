"""What recipes and the command line share: options as words, sessions, and what is refused before the first step."""

import argparse
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import zsaq
from language_toys import bert, bpe, opt, wordpiece
from vision_toys import resnet
from zsaq import Loop, beforehand, launch, script
from zsaq.train.logging import StepLog
from zsaq.train.optim import NotFinite

BATCHES = [{"input_ids": torch.tensor([[6, 7, 8]])}] * 2
LEAST = ["--methods", "rtn", "--output_dir", "x"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3), ("-1", -1), ("1e-4", 1e-4), ("0.5", 0.5), ("true", True), ("False", False), ("none", None),
        ("5,1", (5, 1)), ("0.1,0.8", (0.1, 0.8)), ("auto", "auto"), ("path/to", "path/to"),
    ],
)  # fmt: skip
def test_the_value_of_a_word(text: str, value: Any) -> None:
    answer = script.value_of(text)
    assert answer == value and type(answer) is type(value)


def test_words_are_pairs() -> None:
    assert script.options_of(["--steps", "2", "--ratio", "5,1"]) == {"steps": 2, "ratio": (5, 1)}
    assert script.options_of(["--steps=2", "--ratio", "5,1", "--x=a=b"]) == {"steps": 2, "ratio": (5, 1), "x": "a=b"}
    assert script.options_of(["--note", "--x=y", "--steps=2"]) == {"note": "--x=y", "steps": 2}
    assert script.options_of([]) == {}
    for words in (["--steps"], ["steps", "2"], ["--steps=2", "3"], ["--steps", "2", "x"], ["--=3"], ["--a b=3"]):
        with pytest.raises(ValueError, match="give pairs such as --steps 200"):
            script.options_of(words)


def test_a_recipe_has_a_flag_for_every_option_of_its_method() -> None:
    flags = launch.parser("text", "w2a8", "toy", method="zsaq-paper")
    assert set(flags.get_default("own")) == set(zsaq.methods()["language"]["zsaq-paper"].options())
    args = launch.parse(flags, ["--steps", "9", "--lora", "--ratio", "3,1", "--teacher_bits", "8"])
    assert args.options == {"steps": 9, "lora": True, "ratio": (3, 1)} and args.teacher_bits == 8
    assert (args.bits, args.effort, args.output_dir, args.method) == ("w2a8", "light", "outputs/toy", "zsaq-paper")
    assert launch.parse(flags, []).options == {}


def test_other_methods_options_pass_and_no_flag_may_be_shortened(capsys: pytest.CaptureFixture[str]) -> None:
    flags = launch.parser("text", "w2a4", "toy")
    assert launch.parse(flags, ["--image_steps", "9", "--see", "1"]).options == {"image_steps": 9, "see": 1}
    with pytest.raises(SystemExit) as left:
        launch.parse(flags, ["--image_steps"])
    assert left.value.code == 2 and "give pairs" in capsys.readouterr().err


def arguments(*words: str, method: str | None = None) -> argparse.Namespace:
    return launch.parse(launch.parser("text", "w4a8", "toy", method=method), ["--output_dir", "x", *words])


@pytest.mark.parametrize("error", [ValueError("too few bits"), OSError("disk is full"), ConnectionError("no Hub")])
def test_a_session_tells_an_error_in_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left, launch.session(arguments()):
        raise error
    output = capsys.readouterr()
    assert left.value.code == 2 and output.err == f"error: {error}\n" and output.out == ""


@pytest.mark.parametrize(
    ("method", "words", "message"),
    [
        ("zsaq", "--bits banana", "'banana' is no quantization"),
        ("zsaq", "--foo 3", "none of these methods has the option foo"),
        ("zsaq", "--steps 0", "steps is 0; give an integer of at least 1"),
        ("zsaq", "--seed -1", "seed is -1"),
        (None, "--bits banana", "'banana' is no text of a preset"),
        (None, "--preset magic", "preset is 'magic'; give brecq, psaq or uniform"),
        (None, "--foo 3", "none of these methods has the option foo"),
        (None, "--push_to_hub x", "'x' names no namespace"),
    ],
)
def test_words_that_are_wrong_are_told_before_a_teacher_is_there(
    method: str | None, words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left, launch.session(arguments(*words.split(), method=method)):
        never()
    assert left.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--preset uniform", "presets are for images"),
        ("--bits w4a8 w99", "'w99' is no quantization"),
        ("--calibration 2 --stesp 1", "none of these methods has the option stesp; their options are calibration"),
        ("--calibration 0", "calibration is 0"),
        ("--seeds 0 -1", "seed is -1"),
    ],
)
def test_so_are_those_of_a_table(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = launch.table_parser("text", "w4a8", "language")
    args = launch.parse(flags, ["--methods", "rtn", "gptq", "--output_dir", "x", *words.split()])
    with pytest.raises(SystemExit) as left, launch.session(args):
        never()
    assert left.value.code == 2 and message in capsys.readouterr().err


def test_tables_are_of_16_bits_too() -> None:
    flags = launch.table_parser("text", "w4a8", "language")
    args = launch.parse(flags, ["--methods", "rtn", "--output_dir", "x", "--mixed_precision", "bf16"])
    assert args.mixed_precision == "bf16" and not args.options


def test_options_that_python_has_pass() -> None:
    args = arguments("--zero_shot", "true", "--image_steps", "3")
    with launch.session(args):
        assert args.options == {"zero_shot": True, "image_steps": 3}


def test_a_licence_is_asked_for_before_a_teacher_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(beforehand, "ready", lambda *_: None)
    for teacher in (None, str(tmp_path)):
        with pytest.raises(SystemExit), launch.session(arguments("--push_to_hub", "me/x"), teacher):
            never()
        assert "--push_to_hub needs --license" in capsys.readouterr().err
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    for words, teacher in ((["--license", "mit"], None), ([], str(tmp_path))):
        with launch.session(arguments("--push_to_hub", "me/x", *words), teacher):
            pass


def test_a_tracker_that_is_missing_is_an_error_of_the_user(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), launch.session(arguments("--trackers", "magic")):
        raise AssertionError("the session began")
    assert "cannot be imported" in capsys.readouterr().err


def never(*_: Any) -> Any:
    raise AssertionError("a step was taken")


def test_a_folder_of_something_else_is_refused_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="was not written by"):
        launch.run(bert(wordpiece()), "w4a8", tmp_path, method=never)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def stepped(job: Any, config: Any, budget: Any, seed: int, loop: Loop) -> Any:
    student = zsaq.quantize_model(job.teacher, config)
    return zsaq.distill(student, job.teacher, BATCHES, zsaq.KL(), torch.optim.SGD(student.parameters(), 1e-3), 2, loop)


def undrawn(job: Any, *_: Any) -> Any:
    assert job.folder("genie", 0) is None
    return zsaq.quantize_model(job.teacher, "w4a16")


def test_a_training_that_diverges_leaves_the_last_good_student(tmp_path: Path) -> None:
    def diverges(job: Any, config: Any, *_: Any) -> Any:
        error = NotFinite("the loss is not finite")
        error.student = zsaq.quantize_model(job.teacher, config)
        raise error

    with pytest.raises(ValueError, match=r"after its last good step is in .*out-last-good"):
        launch.run(bert(wordpiece()), "w4a8", tmp_path / "out", method=diverges)
    assert zsaq.load(tmp_path / "out-last-good") and not (tmp_path / "out").exists()


def test_a_baseline_that_diverges_is_not_saved_as_the_student(tmp_path: Path) -> None:
    def sinks(job: Any, config: Any, budget: Any, seed: int, loop: Loop) -> Any:
        student = stepped(job, config, budget, seed, loop)
        learning = torch.optim.SGD(student.parameters(), 1e-3)
        return zsaq.distill(student, job.teacher, BATCHES, zsaq.KL(math.inf), learning, 2, loop, stage="ends")

    with pytest.raises(NotFinite, match="the baseline sinks diverges, so leave it off: ") as caught:
        launch.run(bert(wordpiece()), "w4a8", tmp_path / "out", method="rtn", baselines=[sinks])
    assert caught.value.student is None
    assert [path.name for path in tmp_path.iterdir()] == ["out-checkpoint"], "kept as with any other error"


def test_what_a_baseline_logs_and_draws_is_not_the_students(tmp_path: Path) -> None:
    launch.run(bert(wordpiece()), "w4a8", tmp_path / "out", method="rtn", baselines=[stepped])
    assert not [path.name for path in (tmp_path / "out").iterdir() if path.suffix in (".jsonl", ".png")]
    given: dict[str, Any] = {"spec": 16, "preset": "brecq", "method": "rtn-noise", "images": 4}
    launch.run(resnet(), "w4a8", tmp_path / "drawn", baselines=[undrawn], **given)


def test_a_recipe_from_flags_to_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = launch.parser("text", "w4a8", "toy", method="llm-qat")
    args = launch.parse(flags, ["--steps", "2", "--output_dir", str(tmp_path / "out"), "--license", "mit"])
    subject = {
        "model": bert(wordpiece()), "tokenizer": wordpiece(), "generator": (opt(bpe()), bpe()),
        "score": lambda _: {"accuracy": 0.5},
    }  # fmt: skip
    with launch.session(args) as loop:
        launch.main(args, loop, subject, baselines=("rtn", "llm-qat"), recipe=__file__)
    output = capsys.readouterr()
    results = zsaq.Results.read(tmp_path / "out")
    assert [row.name for row in results.rows] == ["teacher", "rtn", "llm-qat"]
    assert results.recipe == "recipes/test_launch.py" and len(results.recipe_sha256 or "") == 64
    assert {"curves.png", "distill.jsonl"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert "toy, w4a8" in output.out and "llm-qat" in output.out and "distill" not in output.out
    assert all("%|" not in line for line in output.err.splitlines()), "a loading bar of others"


def test_a_table_from_flags_to_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = launch.table_parser("text", "w4a8", "language")
    args = launch.parse(flags, ["--methods", "rtn", "--output_dir", str(tmp_path / "x"), "--bits", "w4a8", "w2a8"])
    subject = {"model": bert(wordpiece()), "tokenizer": wordpiece(), "score": lambda _: 0.123456, "data": None}
    with launch.session(args) as loop:
        launch.table(args, loop, subject)
    shown = capsys.readouterr().out
    assert shown.count("0.1235") == 3 and "teacher" in shown and "w2a8" in shown
    assert (tmp_path / "x" / "table.csv").is_file() and (tmp_path / "x" / "table.png").is_file()


def test_a_fit_that_logs_no_step_draws_nothing_and_says_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def rounds(job: Any, config: Any, budget: Any, seed: int, loop: Loop) -> Any:
        with StepLog(loop.accelerator, "rounds", 0, loop.folder):
            return zsaq.quantize_model(job.teacher, config)

    launch.run(bert(wordpiece()), "w4a8", tmp_path / "out", method=rounds)
    assert not (tmp_path / "out" / "curves.png").exists() and "There are no curves" not in capsys.readouterr().err


@pytest.mark.parametrize("word", ["loop", "configs", "tokenizer", "model", "checkpoint"])
def test_arguments_of_python_are_no_options(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        launch.parse(launch.table_parser("text", "w4a8", "language"), [*LEAST, f"--{word}", "3"])
    assert f"--{word} is no option here" in capsys.readouterr().err


def test_a_table_has_a_preset_and_no_option_twice() -> None:
    args = launch.parse(launch.table_parser("text", "w4a8", "language"), [*LEAST, "--preset", "uniform"])
    assert args.preset == "uniform" and args.options == {}
    with pytest.raises(ValueError, match="--generator 3 is no option here: this script gives it"):
        script.beside({"generator": 3, "steps": 2}, {"generator": opt(bpe())})
    assert script.beside({"steps": 2}, {"seed": 1}) == {"steps": 2, "seed": 1}
