"""GLUE from files of every kind and from the command line, in one process and in several."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from glue_toys import Folder, rows, saved, teacher, tokenizer, write
from zsaq.eval import TASKS, read_rows, score
from zsaq.eval.glue import averages, main

__all__ = ["saved"]

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("kind", ["parquet", "tsv", "jsonl"])
@pytest.mark.parametrize("folder", ["sst2", "."])
def test_local_files_of_every_kind(tmp_path: Path, kind: str, folder: str) -> None:
    content = [row | {"sentence": 'a "good film'} for row in rows("sst2")]
    write(tmp_path / folder / f"validation.{kind}", content[:4])
    write(tmp_path / folder / f"test.{kind}", content[4:])
    loaded = read_rows("sst2", "validation+test", tmp_path)
    assert [(row["sentence"], int(row["label"])) for row in loaded] == [(r["sentence"], r["label"]) for r in content]


def test_local_shards_label_names_and_mnlis_two_splits(tmp_path: Path) -> None:
    write(tmp_path / "mnli/validation_matched-00000-of-00002.parquet", rows("mnli", 2))
    write(tmp_path / "mnli/validation_matched-00001-of-00002.parquet", rows("mnli", 3))
    assert len(read_rows("mnli", "validation", tmp_path)) == 5
    write(tmp_path / "mnli/validation_mismatched.tsv", [row | {"label": "neutral"} for row in rows("mnli")])
    named = read_rows("mnli-mm", "validation", tmp_path)
    assert score(teacher(3), tokenizer(), "mnli-mm", named).keys() == {"accuracy", "score"}
    with pytest.raises(ValueError, match="no file for split 'dev_matched'"):
        read_rows("mnli", "dev", tmp_path)
    write(tmp_path / "mnli/validation_mismatched.jsonl", rows("mnli"))
    with pytest.raises(ValueError, match="keep one of them"):
        read_rows("mnli-mm", "validation", tmp_path)


def test_both_averages_by_hand() -> None:
    scores = dict.fromkeys(TASKS, 0.8) | {"mnli": 0.6, "mnli-mm": 0.5}
    assert averages(scores) == {
        "average_8": pytest.approx((7 * 0.8 + 0.55) / 8),
        "average_9": pytest.approx((7 * 0.8 + 1.1) / 9),
    }
    assert averages({"sst2": 0.8}) == {}


def test_the_suite_from_the_command_line(saved: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for task in TASKS.values():
        saved(f"models/{task.config}", task.outputs)
        write(tmp_path / "data" / task.config / f"validation{task.suffix}.jsonl", rows(task.name))
    model = str(tmp_path / "models/{task}")
    arguments = ["--model", model, "--teacher", model, "--task", "all", "--data_dir", str(tmp_path / "data")]
    report = main([*arguments, "--output", str(tmp_path / "out.json")])
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1]) == json.loads((tmp_path / "out.json").read_text()) == report
    assert list(report["tasks"]) == list(TASKS)
    scores = {name: row["score"] for name, row in report["tasks"].items()}
    assert report["average_8"] == averages(scores)["average_8"]
    for word in (*TASKS, "average_8", "average_9"):
        assert any(word in line for line in lines[:-1])


def test_command_line_errors(saved: Folder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown task 'wnli'"):
        main(["--model", "x", "--task", "sst2", "wnli"])
    write(tmp_path / "validation.jsonl", rows("sst2"))
    with pytest.raises(ValueError, match="is no folder"):
        main(["--model", str(tmp_path / "none"), "--task", "sst2", "--data_dir", str(tmp_path)])
    model = teacher()
    model.bert.save_pretrained(tmp_path / "headless")
    with pytest.raises(ValueError, match=r"no weights for \['classifier.bias', 'classifier.weight'\]"):
        main(["--model", str(tmp_path / "headless"), "--task", "sst2", "--data_dir", str(tmp_path)])


def test_as_a_script(saved: Folder, tmp_path: Path) -> None:
    write(tmp_path / "validation.parquet", rows("sst2"))
    arguments = ["--model", saved(), "--task", "sst2", "--data_dir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "eval/glue.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == main(arguments)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 7])  # fewer batches than processes, and an uneven share
def test_two_processes_equal_one(saved: Folder, tmp_path: Path, count: int) -> None:
    write(tmp_path / "validation.jsonl", rows("rte", count))
    arguments = ["--model", saved(), "--teacher", saved("other", seed=1), "--task", "rte"]
    arguments += ["--data_dir", str(tmp_path), "--batch_size", "2"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*launch, "eval/glue.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    values, alone = json.loads(done.stdout.splitlines()[-1])["tasks"]["rte"], main(arguments)["tasks"]["rte"]
    assert values == {k: pytest.approx(v, rel=1e-5) if isinstance(v, float) else v for k, v in alone.items()}
