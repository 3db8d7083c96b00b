"""The command line: what is on stdout, what the exit code means, and that it is only a thin cover of the library."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import zsaq
import zsaq_cli
from commands import run, told, toys_in
from zsaq import Card
from zsaq.io.checksums import check_manifest

COMMANDS = [
    *(
        "quantize",
        "quantize-files",
        "synthesize",
        "compare",
        "methods",
        "inspect",
        "fit",
        "evaluate",
        "export",
        "verify",
        "bench",
        "serve",
        "chat",
        "report",
        "push",
    ),
    "doctor",
]
GROUP: Any = get_command(zsaq_cli.app)
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys_in(tmp_path_factory.mktemp("cli"))


def test_help_is_fast_and_loads_nothing_heavy() -> None:
    code = "import sys, zsaq_cli; print([n for n in ('torch', 'transformers', 'zsaq', 'numpy') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_top_level_help_documents_every_exit_code() -> None:
    text = run("--help").stdout
    assert all(command in text for command in COMMANDS) and list(GROUP.commands) == COMMANDS
    for code in ("0 ", "1 ", "2 ", "3 ", "4 ", "70 ", "130 "):
        assert f"\n {code}" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_of_a_help_is_a_command_that_exists(name: str) -> None:
    assert run(name, "--help").exit_code == 0
    examples = [line.strip() for line in (GROUP.commands[name].help or "").splitlines() if line.startswith("zsaq ")]
    assert examples
    for example in examples:
        _, command, *args = shlex.split(example)
        assert command == name
        assert GROUP.commands[name].make_context(name, [*args]).params["as_json"] == ("--json" in args)


def test_quantize_saves_a_student_with_its_facts(folder: Path) -> None:
    student = folder / "student"
    results = json.loads((student / "results.json").read_text())
    assert results["zero_shot"] is True and results["base"]["license"] == {"license": "apache-2.0"}
    assert results["rows"][-1]["bytes"] == (student / "model.safetensors").stat().st_size
    assert set(check_manifest(student)["files"]) >= {"tokenizer.json", "model.safetensors"}
    assert zsaq.coverage(zsaq.load(student)) == results["coverage"]


def few(method: str, room: str) -> list[str]:
    """A small budget, as the method's own options."""
    small = {"steps": 2, "calibration": 2, "images": 4, "image_steps": 2}
    budgets = zsaq.methods()[room][method].budgets
    return [word for name, count in small.items() if name in budgets for word in (f"--{name}", str(count))]


@pytest.mark.parametrize("method", ["gptq", "gptq-qat", "random-qat", "lkd", "llm-qat", "zsaq"])
def test_methods_for_text(folder: Path, tmp_path: Path, method: str) -> None:
    facts = told(
        "quantize", folder / "bert", "--output_dir", tmp_path / "x", "--bits", "w2a8", "--method", method,
        "--generator", folder / "opt", "--seed", "1", "--effort", "light", *few(method, "language"),
    )  # fmt: skip
    assert facts["method"] == method and facts["zero_shot"] is True and facts["budget"]["effort"] == "light"
    assert facts["bytes"] == (tmp_path / "x" / "model.safetensors").stat().st_size
    assert list((tmp_path / "x").glob("*.jsonl")) and zsaq.load(tmp_path / "x")


@pytest.mark.parametrize(("method", "preset"), [("rtn-noise", "uniform"), ("zeroq", "brecq"), ("genie", "brecq")])
def test_methods_for_images(folder: Path, tmp_path: Path, method: str, preset: str) -> None:
    facts = told(
        "quantize", folder / "resnet", "--output_dir", tmp_path / "x", "--bits", "w4a4", "--method", method,
        "--preset", preset, *few(method, "vision"),
    )  # fmt: skip
    assert facts["preset"] == preset and (tmp_path / "x" / "preprocessor_config.json").is_file()
    scores = told(
        "evaluate", tmp_path / "x", "--images", folder / "images", "--teacher", folder / "resnet", "--limit", "3"
    )
    assert 0 <= scores["accuracy"] <= 1 and "agreement" in scores and scores["score"] == "accuracy"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--bits", "w9a8"], "is no quantization"),
        (["--bits", "[red]w4"], "[red]w4"),
        (["--method", "magic"], "magic"),
        (["--method", "zsaq", "--generator", "/nowhere"], "/nowhere"),
        (["--method", "llm-qat", "--steps", "0"], "steps is 0; give an integer of at least 1"),
        (["--method", "llm-qat", "--lr", "x"], "lr is 'x'; give a finite number"),
        (["--method", "llm-qat", "--stesp", "2"], "llm-qat has no option stesp; its options are steps=2000"),
        (["--method", "llm-qat", "--steps"], "'--steps' are no options: give pairs such as --steps 200"),
        (["--method", "genie"], "for BertForSequenceClassification give one of rtn-minmax"),
        (["--preset", "brecq"], "presets are for images"),
        (["--size", "16"], "spec is not for BertForSequenceClassification"),
        (["--effort", "heroic"], "light, default, best"),
        (["--seed", "x"], "seed"),
    ],
)
def test_bad_input_is_told_without_a_traceback(folder: Path, tmp_path: Path, options: list[str], said: str) -> None:
    result = run("quantize", folder / "bert", "--output_dir", tmp_path / "x", *options)
    assert result.exit_code == 2 and said in result.stderr and result.stdout == ""
    assert "Traceback" not in result.output and not (tmp_path / "x").exists()


@pytest.mark.parametrize("model", ["/nowhere", "no such/model", "../x", "", "tests", "student"])
def test_what_is_no_float_model_is_refused(folder: Path, tmp_path: Path, model: str) -> None:
    source = folder / model if model == "student" else model
    facts = told("quantize", source, "--output_dir", tmp_path / "x", code=2)
    assert set(facts) == {"error", "exit_code"} and facts["exit_code"] == 2
    assert not (tmp_path / "x").exists()


def test_a_folder_of_somebody_else_is_not_overwritten(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert "was not written by" in told("quantize", folder / "bert", "--output_dir", tmp_path, code=2)["error"]
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_model_comes_before_the_methods_options(folder: Path, tmp_path: Path) -> None:
    result = run("quantize", "--steps", "2", folder / "bert", "--output_dir", tmp_path / "x")
    assert result.exit_code == 2 and "give the model first" in result.stderr


def test_compare_keeps_runs_and_shows_a_table(folder: Path, tmp_path: Path) -> None:
    given = [
        "compare", folder / "bert", "--methods", "rtn,gptq", "--bits", "w4a8,w2a8", "--seeds", "0,1", "--task", "sst2",
        "--data_dir", folder, "--generator", folder / "opt", "--output_dir", tmp_path / "x", "--calibration", "1",
    ]  # fmt: skip
    rows = told(*given)["rows"]
    assert [(row["config"], row["method"], row["seeds"]) for row in rows] == [
        ("", "teacher", 1), ("w4a8", "rtn", 1), ("w4a8", "gptq", 2), ("w2a8", "rtn", 1), ("w2a8", "gptq", 2),
    ]  # fmt: skip
    assert {"accuracy", "agreement", "kl", "data seen"} <= set(rows[2])
    before = (tmp_path / "x" / "runs.jsonl").read_text()
    shown = run(*given)
    assert shown.exit_code == 0 and "teacher" in shown.stdout and "0." in shown.stdout
    assert (tmp_path / "x" / "runs.jsonl").read_text() == before
    assert "gptq" in (tmp_path / "x" / "table.md").read_text()
    assert "--seeds is 'x'" in told(*given, "--seeds", "x", code=2)["error"]
    assert "give one of --task" in told(*given, "--text", "x", code=2)["error"]


def test_methods_lists_the_tables_and_the_options_of_one() -> None:
    facts = told("methods")
    assert {room: [row["name"] for row in rows] for room, rows in facts.items()} == {
        room: list(table) for room, table in zsaq.methods().items()
    }
    one = told("methods", "genie")
    assert {row["option"] for row in one["vision options"]} == set(zsaq.methods()["vision"]["genie"].options())
    assert "by the model" in run("methods", "zsaq-paper").stdout
    assert "there is no method 'magic'" in told("methods", "magic", code=2)["error"]


def test_nothing_but_our_own_lines(folder: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    words = ["quantize", str(folder / "bert"), "--method", "rtn", "--output_dir", str(tmp_path / "x")]
    done = subprocess.run([sys.executable, "-m", "zsaq_cli", *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "coverage" in done.stdout
    usual, share, *lines = done.stderr.splitlines()
    assert usual.startswith("no bits were given: w4a8")
    assert share.startswith("rtn: 91% of the bytes of BertForSequenceClassification are quantized; in floats stay ")
    assert lines == [
        "rtn on bert, effort default: nothing to spend",
        f"The model, results.json, curves and the steps' numbers are in {tmp_path / 'x'}",
    ]


def test_evaluate_scores_bounds_and_records(folder: Path) -> None:
    given = ["evaluate", folder / "student", "--task", "sst2", "--data_dir", folder, "--teacher", folder / "bert"]
    facts = told(*given)
    assert facts["holds"] is True and {"accuracy", "kl", "teacher_accuracy"} <= set(facts)
    assert facts["data"] == {"name": "GLUE sst2", "split": "validation"}
    assert told(*given, "--limit", "2")["data"]["split"] == "validation, first 2 rows"
    assert told(*given, "--at_least", "1.1", code=1)["holds"] is False
    assert told(*given, "--at_most", "-1", code=1)["holds"] is False
    told(*given, "--record")
    check_manifest(folder / "student")
    card = Card.of(folder / "student")
    assert {(s.model, s.metric) for s in card.scores} >= {("teacher", "accuracy"), ("rtn", "accuracy"), ("rtn", "kl")}
    page = told("report", folder / "student")
    assert "scores" not in page["missing"] and Path(page["report"]).is_file()


def test_evaluate_wants_one_kind_of_data(folder: Path) -> None:
    student = folder / "student"
    for options in (
        [],
        ["--task", "sst2", "--text", "x"],
        ["--images", "x", "--data_dir", "y"],
        ["--text", "/nowhere"],
    ):
        assert told("evaluate", student, *options, code=2)["error"]
    assert "--record" in told("evaluate", folder / "bert", "--task", "sst2", "--record", code=2)["error"]


def test_the_module_runs_in_a_process() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "zsaq_cli", "quantize", "--bits"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == "" and "requires an argument" in done.stderr
