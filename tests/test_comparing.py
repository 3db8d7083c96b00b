"""`zsaq.compare`: a grid of runs that goes on where it stopped, as mean and spread."""

import csv
import json
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import torch
from torch import nn

import zsaq
from language_toys import bert, bpe, opt, wordpiece
from vision_toys import resnet
from zsaq import QuantConfig
from zsaq.report.card import MetricScore
from zsaq.report.comparison import RUNS, Comparison
from zsaq.train.watching import watched

W4 = QuantConfig.parse("w4a8")


def compare(configs: list[Any], methods: list[Any], **options: Any) -> Comparison:
    counted = iter(range(100))
    given: dict[str, Any] = {
        "tokenizer": wordpiece(), "generator": (opt(bpe()), bpe()), "score": lambda _: {"accuracy": next(counted)}
    }  # fmt: skip
    return zsaq.compare(bert(wordpiece()), configs, methods, **(given | options))


def cells(table: Comparison) -> list[tuple[str, str, int]]:
    return [(run["config"], run["method"], run["seed"]) for run in table.runs]


def test_a_grid_of_runs_and_rows_without_options_run_once() -> None:
    table = compare(["w4a8", "w2a8"], ["rtn", "gptq"], seeds=range(2), calibration=1)
    assert cells(table) == [
        ("", "teacher", 0), ("w4a8", "rtn", 0), ("w4a8", "gptq", 0), ("w2a8", "rtn", 0), ("w2a8", "gptq", 0),
        ("w4a8", "gptq", 1), ("w2a8", "gptq", 1),
    ]  # fmt: skip


def mine(job: Any, config: Any, *_: Any) -> nn.Module:
    return zsaq.quantize_model(job.teacher, config)


ANSWERS: list[float] = []


def failing(_: Any) -> dict[str, float]:
    if not ANSWERS:
        raise RuntimeError("power failure")
    return {"accuracy": ANSWERS.pop()}


def test_finished_runs_are_not_repeated(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ANSWERS[:] = [1.0, 1.0]
    with pytest.raises(RuntimeError, match="power failure"):
        compare(["w4a8"], ["rtn", "gptq"], folder=tmp_path, calibration=1, score=failing)
    lines = (tmp_path / RUNS).read_text()
    assert "no checkpoint" not in capfd.readouterr().err, "nobody asked for one"
    ANSWERS.append(2.0)
    table = compare(["w4a8"], ["rtn", "gptq"], folder=tmp_path, calibration=1, score=failing)
    assert [run["accuracy"] for run in table.runs] == [1.0, 1.0, 2.0]
    assert (tmp_path / RUNS).read_text().startswith(lines)
    kept = (tmp_path / RUNS).read_text()
    again = compare(["w4a8"], ["rtn", "gptq"], folder=tmp_path, calibration=1, score=failing)
    assert again.runs == table.runs and (tmp_path / RUNS).read_text() == kept
    assert (tmp_path / "steps" / "w4a8-gptq-0" / "gptq.jsonl").is_file()


@pytest.mark.parametrize("many", [{"seeds": [0, 1]}, {"configs": ["w4a8", "w2a8"]}, {"methods": ["distill", mine]}])
def test_an_iterator_of_batches_is_for_one_run(many: dict[str, Any]) -> None:
    batches = [{"input_ids": torch.full((1, 3), value)} for value in range(6, 10)]
    given: dict[str, Any] = {"configs": ["w4a8"], "methods": ["distill"], "steps": 2}
    assert len(compare(**given, batches=iter(batches)).runs) == 2
    with pytest.raises(ValueError, match="batches is a list_iterator, in which each of 2 runs would go on"):
        compare(**(given | many), batches=iter(batches))
    assert len(compare(**(given | many), batches=batches).runs) == 3


@pytest.mark.parametrize(
    "other", [{"calibration": 2}, {"effort": "light"}, {"generator": "somebody/else"}, {"model": "another"}]
)
def test_a_folder_of_other_runs_is_refused(tmp_path: Path, other: dict[str, Any]) -> None:
    options: dict[str, Any] = {"folder": tmp_path, "calibration": 1}
    compare(["w4a8"], ["gptq"], **options)
    if "model" in other:
        text = (tmp_path / RUNS).read_text().replace('"model": "a Bert', '"model": "another Bert')
        (tmp_path / RUNS).write_text(text)
        other = {}
    with pytest.raises(ValueError, match=r"holds runs of .*: give a new folder"):
        compare(["w4a8"], ["gptq"], **(options | other))


@pytest.mark.parametrize("line", ["{", "[]", '{"config": "w4a8"}', "[" * 100_000])
def test_a_line_that_is_no_run_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / RUNS).write_text(line + "\n{}\n")
    with pytest.raises(ValueError, match=RUNS):
        compare(["w4a8"], ["rtn"], folder=tmp_path)


def test_options_go_to_the_methods_that_have_them(tmp_path: Path) -> None:
    compare(["w4a8"], ["rtn", "gptq", "llm-qat"], steps=2, calibration=1, folder=tmp_path)
    assert len((tmp_path / "steps" / "w4a8-llm-qat-0" / "distill.jsonl").read_text().splitlines()) == 2
    with pytest.raises(ValueError, match="none of these methods has the option rho, stesp; their options are calib"):
        compare(["w4a8"], ["rtn", "gptq"], stesp=2, rho=0.1)
    with pytest.raises(ValueError, match="their options are none"):
        compare(["w4a8"], ["rtn"], steps=2)


def test_a_callable_runs_for_every_seed_and_a_configuration_has_a_name() -> None:
    def mine(job: Any, config: QuantConfig, *_: Any) -> nn.Module:
        return zsaq.quantize_model(job.teacher, config)

    table = compare([W4], [mine], seeds=[3, 4])
    (name,) = {run["config"] for run in table.runs} - {""}
    assert name.startswith("w4a8-") and len(name) == 13
    assert [run["seed"] for run in table.runs if run["method"] == "mine"] == [3, 4]
    assert table.rows()[1]["data seen"] == "real", "nobody knows what a callable reads"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("w4a8", ["rtn"]), "configs is 'w4a8'; give a list"),
        ((["w4a8"], "rtn"), "methods is 'rtn'; give a list"),
        (([], ["rtn"]), r"configs is \[\]; give a list of at least one"),
        ((["w9a8"], ["rtn"]), "no quantization"),
        ((["w4a8"], ["magic"]), "method is 'magic'"),
    ],
)
def test_what_cannot_be_compared(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare(*arguments)
    with pytest.raises(ValueError, match=r"seeds is \[\]; give a list"):
        compare(["w4a8"], ["rtn"], seeds=[])
    with pytest.raises(ValueError, match="seeds is 3; give a list"):
        compare(["w4a8"], ["rtn"], seeds=3)
    with pytest.raises(ValueError, match=r"seeds has 0\.5; give integers"):
        compare(["w4a8"], ["rtn"], seeds=[0.5])
    with pytest.raises(ValueError, match="batches are read by method='distill' alone, not by rtn, gptq"):
        compare(["w4a8", "w2a8"], ["rtn", "gptq"], batches=[{}])
    with pytest.raises(ValueError, match="effort is 'heroic'"):
        compare(["w4a8"], ["rtn"], effort="heroic")


def run(config: str, method: str, seed: int, accuracy: float, zero_shot: bool = True) -> dict[str, Any]:
    return {
        "config": config, "method": method, "seed": seed, "zero_shot": zero_shot, "seconds": 1.0, "accuracy": accuracy
    }  # fmt: skip


TABLE = Comparison(
    (
        run("", "teacher", 0, 0.9),
        run("w4a8", "gptq", 0, 0.5),
        run("w4a8", "gptq", 1, 0.7),
        run("w2a8", "real", 0, 0.4, zero_shot=False),
    )
)


def test_mean_and_deviation_are_those_by_hand(tmp_path: Path) -> None:
    _, gptq, real = TABLE.rows()
    assert gptq["accuracy"] == pytest.approx(fmean([0.5, 0.7])) and gptq["seeds"] == 2
    assert gptq["accuracy sd"] == pytest.approx(stdev([0.5, 0.7])) and "accuracy sd" not in real
    assert (gptq["data seen"], real["data seen"]) == ("none", "real")
    assert "| w4a8 | gptq | 2 | none | 0.6000 ± 0.1414 |" in TABLE.to_markdown()
    with TABLE.to_csv(tmp_path / "t.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[1]["accuracy sd"]) == pytest.approx(stdev([0.5, 0.7]))
    TABLE.write(tmp_path)
    assert all((tmp_path / name).stat().st_size for name in ("table.md", "table.csv", "table.png"))
    assert TABLE.plot(tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")


def test_small_and_large_numbers_are_told_apart() -> None:
    base = {"config": "w8a8", "zero_shot": True, "seconds": 0.1}
    runs = [base | {"method": "rtn", "seed": seed, "kl": kl} for seed, kl in enumerate((2.3e-5, 2.5e-5))]
    runs += [base | {"method": "gptq", "seed": 0, "kl": 0.0}, base | {"method": "zsaq", "seed": 0, "kl": 123456.0}]
    cells = [row.split(" | ")[4] for row in Comparison(tuple(runs)).to_markdown().splitlines()[2:]]
    assert cells == ["2.4e-05 ± 1.414e-06", "0.0000", "1.235e+05"]
    scores = [MetricScore("rtn", "kl", values) for values in ((9e-6,), (9e-6, 11e-6), (0.25,))]
    assert list(map(str, scores)) == ["9e-06", "1e-05 ± 1.414e-06", "0.2500"]


def test_nothing_scored_is_nothing_drawn(tmp_path: Path) -> None:
    table = compare(["w4a8"], ["rtn"], score=None)
    assert table.metrics == [] and cells(table) == [("w4a8", "rtn", 0)]
    table.write(tmp_path)
    assert not (tmp_path / "table.png").exists()
    with pytest.raises(ValueError, match="give compare a score"):
        table.plot(tmp_path / "t.png")


@pytest.mark.parametrize(
    ("method", "options"),
    [("gptq-real", {}), ("distill", {}), ("gptq", {"tokenizer": None}), ("llm-qat", {"tokenizer": None})],
)
def test_what_a_row_reads_and_nobody_gave_is_told_before_the_first_run(
    method: str, options: dict[str, Any], tmp_path: Path
) -> None:
    for methods in (["rtn", method], ["rtn", mine, method]):
        with pytest.raises(ValueError, match=r"and none (was|were) given"):
            compare(["w4a8"], methods, folder=tmp_path, **options)
    assert not any(tmp_path.iterdir())


def test_images_are_made_once() -> None:
    seen: list[str] = []
    with watched(lambda stage, *_: seen.append(stage)):
        zsaq.compare(
            resnet(), ["w4a4", "w8a8"], ["zeroq", "rtn-noise"], spec=16, images=4, image_steps=3, preset="brecq"
        )
    assert seen == ["zeroq"] * 3


def test_what_is_kept_is_json(tmp_path: Path) -> None:
    compare(["w4a8"], ["rtn"], folder=tmp_path)
    first = json.loads((tmp_path / RUNS).read_text().splitlines()[0])
    assert first["of"]["model"] == "a BertForSequenceClassification" and first["method"] == "teacher"


def test_a_figure_has_a_panel_for_each_metric_that_was_scored(tmp_path: Path) -> None:
    table = Comparison(tuple({**run, "kl": 0.5} for run in TABLE.runs))
    of_kl = table.plot(tmp_path / "kl.png", ["kl"]).read_bytes()
    assert of_kl.startswith(b"\x89PNG") and of_kl != table.plot(tmp_path / "all.png").read_bytes()
    with pytest.raises(ValueError, match=r"speed was not scored; there are"):
        TABLE.plot(tmp_path / "t.png", ["speed"])
