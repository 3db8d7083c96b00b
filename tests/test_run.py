"""results.json: one schema, both ways; whatever is not of its form is refused by name."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zsaq import QuantConfig
from zsaq.run import Base, Data, Results, Row

WHOLE = Results(
    "some/bert", "zsaq", QuantConfig.parse("w2a8"), 3, True, "the generator's text",
    (Row("teacher", 100, 0.0, {"accuracy": 0.9}), Row("zsaq", 9, 1.5, {"accuracy": 0.8, "kl": 0.1})),
    budget={"effort": "light", "steps": 200, "ratio": [5, 1]}, preset=None, coverage={"a.b": "weights 2-bit"},
    knowledge=("labels: good, bad",), data=Data("GLUE sst2", "nyu-mll/glue", "sst2", "validation"),
    base=Base("some/bert", {"license": "mit"}, "some/bert", "abc"), seconds=2.5, machine={"threads": 1},
    versions={"zsaq": "0.1.0"},
)  # fmt: skip


def plain(results: Results) -> dict[str, Any]:
    return json.loads(json.dumps(results.to_dict()))


def test_results_come_back_whole(tmp_path: Path) -> None:
    assert Results.read(WHOLE.write(tmp_path).parent) == WHOLE
    bare = Results("m", "rtn", QuantConfig.parse("w4a8"), 0, True, "nothing", (Row("rtn"),))
    assert Results.from_dict(plain(bare)) == bare
    assert (WHOLE.student.name, WHOLE.metrics) == ("zsaq", ["accuracy", "kl"])
    assert WHOLE.teacher == WHOLE.rows[0] and bare.teacher is None


@pytest.mark.parametrize("key", sorted(plain(WHOLE)))
@pytest.mark.parametrize("value", [None, 3, True, "x", [], {}, [1], {"a": []}, float("nan")])
def test_no_value_of_another_form_is_read(key: str, value: Any) -> None:
    """What is accepted all the same has to mean what it says: it comes back equal."""
    data = plain(WHOLE) | {key: value}
    try:
        results = Results.from_dict(data)
    except ValueError as error:
        assert str(error)
    else:
        assert Results.from_dict(plain(results)) == results


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_whatever_json_there_is_a_row_or_a_clear_error(data: Any) -> None:
    for change in (data, plain(WHOLE) | {"rows": data}, plain(WHOLE) | {"rows": [data]}, plain(WHOLE) | {"base": data}):
        try:
            Results.from_dict(change)
        except ValueError as error:
            assert len(str(error)) > 10


def test_missing_and_unknown_keys_are_named() -> None:
    data = plain(WHOLE)
    for key in ("model", "method", "config", "seed", "zero_shot", "inputs", "rows"):
        with pytest.raises(ValueError, match=f"no {key}"):
            Results.from_dict({k: v for k, v in data.items() if k != key})
    with pytest.raises(ValueError, match=r"unknown keys.*protocol"):
        Results.from_dict(data | {"protocol": "brecq"})
    with pytest.raises(ValueError, match="format_version 9"):
        Results.from_dict(data | {"format_version": 9})
    with pytest.raises(ValueError, match="last one is the student"):
        Results.from_dict(data | {"method": "genie"})
    with pytest.raises(ValueError, match="not finite"):
        Row("x", scores={"a": float("inf")})


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for text in ("", "{", "[" * 100_000, "\x00", json.dumps([1])):
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(ValueError, match=r"results\.json"):
            Results.read(tmp_path)
    with pytest.raises(ValueError, match="cannot be read"):
        Results.read(tmp_path / "nowhere")


def test_scores_on_other_data_replace_those_there_were() -> None:
    same = WHOLE.scored({"zsaq": {"f1": 0.5}}, WHOLE.data)
    assert same.student.scores == {"accuracy": 0.8, "kl": 0.1, "f1": 0.5}
    other = WHOLE.scored({"zsaq": {"f1": 0.5}}, Data("another"))
    assert other.student.scores == {"f1": 0.5} and other.rows[0].scores == {} and other.data == Data("another")
    assert dataclasses.replace(copy.deepcopy(WHOLE), rows=other.rows, data=other.data) == other


def test_numbers_that_no_float_holds_are_refused_like_any_other_form(tmp_path: Path) -> None:
    data = plain(WHOLE)
    row = data["rows"][1] | {"scores": {"accuracy": 10**400}}
    for change in ({"rows": [row]}, {"budget": {"steps": float("nan")}}, {"seconds": 10**400}, {"seed": -(10**400)}):
        (tmp_path / "results.json").write_text(json.dumps(data | change))
        with pytest.raises(ValueError, match=f"cannot be read: results have a number in {next(iter(change))}"):
            Results.read(tmp_path)
    with pytest.raises(ValueError, match="not finite"):
        Row("x", scores={"a": 10**400})


def test_a_budget_is_what_json_gives_back(tmp_path: Path) -> None:
    options = {"ratio": (5, 1), "helper": object(), "limit": float("inf"), "deep": {"a": [(1,), None, True]}}
    results = dataclasses.replace(WHOLE, budget=options)
    assert results.budget == {
        "ratio": [5, 1], "helper": "a object", "limit": "inf", "deep": {"a": [[1], None, True]}
    }  # fmt: skip
    assert Results.from_dict(plain(results)) == results == Results.read(results.write(tmp_path).parent)
