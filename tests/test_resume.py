"""A recipe, a command and a comparison that were stopped go on, with all that belongs to a run."""

import json
from pathlib import Path
from typing import Any

import pytest

import zsaq
from interrupted import stopped_after
from language_toys import bert, bpe, opt, wordpiece
from zsaq import launch
from zsaq.train.stopping import Stopped


def score(_: Any) -> float:
    return 1.0


def job(folder: Path, **given: Any) -> Any:
    return launch.run(
        bert(wordpiece()), "w2a8", folder, tokenizer=wordpiece(), generator=(opt(bpe()), bpe()), license="mit",
        **{"method": "zsaq-plain", "steps": 6, "warm": 2, "baselines": ("rtn",), "score": score, **given},
    )  # fmt: skip


def logged(folder: Path) -> list[dict[str, Any]]:
    """Every line of a run's logs, without the seconds."""
    lines = [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


@pytest.mark.parametrize("step", [1, 3, 6])
def test_a_recipe_goes_on_with_its_logs_and_its_rows(step: int, tmp_path: Path) -> None:
    job(tmp_path / "whole")
    with stopped_after(step), pytest.raises(Stopped):
        job(tmp_path / "run", resume=True)
    assert [path.name for path in tmp_path.iterdir() if path.name != "whole"] == ["run-checkpoint"]
    student = job(tmp_path / "run", resume=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "whole"], "the checkpoint goes at the end"
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()
    assert logged(tmp_path / "run") == logged(tmp_path / "whole") and len(logged(tmp_path / "run")) == 6
    whole = zsaq.Results.read(tmp_path / "whole")
    assert [(row.name, row.bytes, row.scores) for row in student.zsaq.results.rows] == [
        (row.name, row.bytes, row.scores) for row in whole.rows
    ]
    assert student.zsaq.results.seconds >= student.zsaq.results.student.seconds > 0


def test_a_run_that_is_refused_before_its_first_step_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="warm is 9 of 6 steps"):
        job(tmp_path / "run", warm=9)
    assert list(tmp_path.iterdir()) == []
    job(tmp_path / "run")  # mended, without a word of the run before


def test_a_comparison_goes_on_in_the_run_that_was_stopped(tmp_path: Path) -> None:
    given: dict[str, Any] = {"tokenizer": wordpiece(), "generator": (opt(bpe()), bpe()), "steps": 4, "score": score}

    def compared(folder: Path) -> Any:
        return zsaq.compare(bert(wordpiece()), ["w2a8"], ["llm-qat", "random-qat"], folder=folder, **given)

    with stopped_after(6), pytest.raises(Stopped):
        compared(tmp_path)
    with stopped_after(None) as rest:
        table = compared(tmp_path)
    assert len(rest) == 2, "the second run has two steps left"
    assert [run["method"] for run in table.runs] == ["teacher", "llm-qat", "random-qat"]
    assert not (tmp_path / "checkpoints").exists()
    assert len(logged(tmp_path / "steps" / "w2a8-random-qat-0")) == 4


def test_flags_of_recipes_and_commands(tmp_path: Path) -> None:
    one = launch.parser("", "w2a8", "x", method="zsaq").parse_args(["--checkpoint_every", "5", "--resume"])
    many = launch.table_parser("", "w2a8", "language").parse_args(
        ["--methods", "rtn", "--output_dir", "x", "--resume", "--checkpoint_every", "5"]
    )
    assert (one.checkpoint_every, one.resume) == (many.checkpoint_every, many.resume) == (5, True)
