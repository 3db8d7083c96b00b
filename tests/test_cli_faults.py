"""Whatever a user gives, the command line answers with a sentence and an exit code of its own, never a traceback."""

import json
import random
from collections.abc import Iterable
from pathlib import Path

import pytest

from commands import run, toys_in
from faults import Commands, Value

pytestmark = pytest.mark.filterwarnings("ignore")  # others' on damaged files


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Commands:
    return Commands(toys_in(tmp_path_factory.mktemp("toys")), tmp_path_factory.mktemp("work"))


def fault(line: list[Value]) -> str | None:
    """What is wrong with the answer to a command line; None if nothing is."""
    result = run(*line)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return f"{type(result.exception).__name__}: {result.exception}"
    if result.exit_code not in (0, 1, 2, 3, 4) or "Traceback" in result.output:
        return f"exit code {result.exit_code}: {result.output}"
    said = [part for part in result.stderr.splitlines() if "rror" in part]
    if result.exit_code > 1 and not said:
        return f"exit code {result.exit_code} without a word"
    if "--json" in line and result.exit_code != 2 and not isinstance(json.loads(result.stdout), dict):
        return "no JSON object"
    return None


def faults(lines: Iterable[list[Value]]) -> str:
    return "\n".join(f"{line}: {wrong}" for line in lines if (wrong := fault(line)))


def test_folders_of_which_no_model_can_be_made(commands: Commands) -> None:
    text = ("--task", "sst2", "--data_dir", commands.toys)
    assert faults(["evaluate", folder, *text] for folder in commands.folders) == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quantize", "verify", "report", "bench", "export", "push", "teacher", "compare"])
def test_such_folders_in_every_command(commands: Commands, name: str) -> None:
    out = commands.fresh()
    text = ("--task", "sst2", "--data_dir", commands.toys)
    rest: dict[str, list[Value]] = {
        "quantize": ["--method", "rtn", "--output_dir", out], "export": ["--to", "compressed-tensors"],
        "push": ["you/model"], "compare": ["--methods", "rtn", "--output_dir", out, *text], "teacher": [],
    }  # fmt: skip
    start: list[Value] = ["evaluate", commands.toys / "student", *text, "--teacher"] if name == "teacher" else [name]
    some = commands.teachers if name == "bench" else commands.folders  # some students are whole enough to be timed
    assert faults([*start, folder, *rest.get(name, [])] for folder in some) == ""


@pytest.mark.parametrize("option", ["--text", "--images", "--data_dir"])
def test_data_that_cannot_be_read(commands: Commands, option: str) -> None:
    model = commands.toys / {"--text": "opt", "--images": "resnet", "--data_dir": "bert"}[option]
    task = ["--task", "sst2"] if option == "--data_dir" else []
    data = [*commands.data, *commands.folders[:2], "", "a\0b", "x" * 5000, "模型", "~nobody"]
    assert faults(["evaluate", model, *task, option, each] for each in data) == ""


def tried(commands: Commands, count: int, seed: int) -> str:
    rng = random.Random(seed)
    return faults(commands.line(rng) for _ in range(count))


def test_command_lines_at_random(commands: Commands) -> None:
    assert tried(commands, 60, 0) == ""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_many_command_lines_at_random(commands: Commands, seed: int) -> None:
    assert tried(commands, 300, seed) == ""


def test_a_folder_that_may_not_be_read(commands: Commands, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    try:
        assert fault(["evaluate", tmp_path / "closed", "--task", "sst2"]) is None
        assert fault(["quantize", tmp_path / "closed", "--output_dir", tmp_path / "x"]) is None
    finally:
        (tmp_path / "closed").chmod(0o700)


def test_an_output_folder_without_a_name(commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a variable of the shell that is not set."""
    monkeypatch.chdir(tmp_path)
    task = ["--task", "sst2", "--data_dir", commands.toys]
    for line in (["quantize", "--method", "rtn"], ["compare", "--methods", "rtn", *task]):
        assert run(line[0], commands.toys / "bert", *line[1:], "--output_dir", "").exit_code == 2
    assert not any(tmp_path.iterdir())
