"""Tables and curves: what is shown is what was given, escaped in every form."""

import csv
import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from zsaq.report.curves import Curve, draw_curves, read_curves
from zsaq.report.sections import Bars, Section, tree_of
from zsaq.report.table import Table, one_line

ROWS = [{"method": "rtn", "accuracy": 0.5, "bytes": 1024}, {"method": "a|b <i>", "accuracy": None, "note": [1, 2]}]


def test_columns_are_those_of_any_row_and_numbers_go_to_the_right() -> None:
    table = Table(ROWS)
    assert table.columns == ["method", "accuracy", "bytes", "note"]
    assert table.cells() == [["rtn", "0.5000", "1,024", "-"], ["a|b <i>", "-", "-", "1, 2"]]
    assert table.numeric() == [False, True, True, False]


def test_markdown() -> None:
    assert Table(ROWS).to_markdown().splitlines() == [
        "| method | accuracy | bytes | note |",
        "| --- | ---: | ---: | --- |",
        "| rtn | 0.5000 | 1,024 | - |",
        r"| a\|b \<i\> | - | - | 1, 2 |",
    ]
    assert Table([]).to_markdown() == "" and Table.of_facts({"a": 1, "b": None}).to_markdown().startswith("|  |  |\n")


def test_html() -> None:
    text = Table(ROWS).to_html()
    assert "<td class=n>1,024</td>" in text and "<td>a|b &lt;i&gt;</td>" in text and "<th class=n>accuracy</th>" in text
    assert Table([]).to_html() == "" and "<th" not in Table.of_facts({"a": 1}).to_html()


def test_csv_holds_whole_numbers(tmp_path: Path) -> None:
    path = Table([{"a": 1 / 3, "b": "x,y"}, {"a": 2}]).to_csv(tmp_path / "deep" / "t.csv")
    with path.open(newline="") as file:
        assert list(csv.DictReader(file)) == [{"a": repr(1 / 3), "b": "x,y"}, {"a": "2", "b": ""}]
    assert [p.name for p in path.parent.iterdir()] == ["t.csv"]


def test_the_terminal_shows_markup_as_it_is() -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(Table([{"[red]a[/]": "[bold]x[/]", "n": 3}]).to_terminal("[b]t[/]"), Table([]).to_terminal())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[red]a[/]" in text and "[bold]x[/]" in text and "[b]t[/]" in text


def test_any_json_is_spelled_in_a_line() -> None:
    assert one_line({"a": True, "b": None, "c": [], "d": 1e-9}) == "a yes, c none, d 1e-09"
    deep: list = []
    for _ in range(50):
        deep = [deep, 1]
    assert "..." in one_line(deep) and "300 digits" in one_line(10**400) and one_line(float("inf")) == "inf"


def test_a_tree_has_tables_for_lists_of_objects() -> None:
    tree = tree_of("all", {"n": 1, "rows": [{"a": 1}], "part": {"x": {"y": {"z": {}}}}, "few": {"a": 1}})
    assert [part.title for part in tree.parts] == ["rows (1)", "part"] and tree.parts[0].facts.cells() == [["1"]]
    assert tree.facts.cells() == [["n", "1"], ["few", "a 1"]]
    assert not Section("empty").filled and Section("a", texts=["b"]).filled
    assert Bars("x", {"a": 0.0, "b": -1.0}).lines() == [("a", "0.0", "0.0000"), ("b", "0.0", "-1.0000")]


def test_curves_are_read_once_and_drawn_twice(tmp_path: Path) -> None:
    lines = [
        {"step": 1, "KL": 2.0, "lr": 1.0},
        {"step": 2, "KL": 2.0, "text": "x"},
        {"step": 3, "once": 1},
        {"KL": 1},
        3,
    ]
    (tmp_path / "distill.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (curve,) = read_curves(tmp_path / "distill.jsonl")
    assert curve == Curve("distill", "KL", (1.0, 2.0), (2.0, 2.0))
    assert curve.path(300, 100) == "0.0,100.0 300.0,100.0"
    assert str(curve) == "distill: KL: 2 to 2, least 2, most 2"
    assert draw_curves(tmp_path).read_bytes().startswith(b"\x89PNG")
    assert re.fullmatch(r"0\.0,100\.0 50\.0,0\.0 100\.0,50\.0", Curve("", "", (0, 1, 2), (0, 2, 1)).path(100, 100))


def test_nothing_to_draw_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"step": 1, "lr": 2}\n')
    with pytest.raises(ValueError, match="numbers to draw"):
        draw_curves(tmp_path)
    (tmp_path / "a.jsonl").write_text("{")
    with pytest.raises(ValueError, match=r"a\.jsonl cannot be read"):
        draw_curves(tmp_path)
