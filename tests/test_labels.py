"""Which output each class of the data is: names, numbers, and what has to be assumed and is told."""

import math
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from transformers import PretrainedConfig

from zsaq.eval.chance import below_chance, below_zero, worse_than_uniform
from zsaq.eval.images import ImageSource, open_pictures
from zsaq.eval.labels import class_order, names_of, natural


def config(names: list[str]) -> PretrainedConfig:
    return PretrainedConfig(id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)})


def plain(count: int) -> PretrainedConfig:
    return config([f"LABEL_{i}" for i in range(count)])


def listed(form: str, first: int, count: int) -> tuple[str, ...]:
    """Names as folders have them in a listing: 1, 10, 2."""
    return tuple(sorted(form.format(i) for i in range(first, first + count)))


@pytest.mark.parametrize("form", ["{}", "{:02}", "{:03}", "n{}", "n{:02}", "class_{}", "Class {}", "digit-{}", "{}x"])
@pytest.mark.parametrize("first", [0, 1])
def test_numbers_count_as_numbers(form: str, first: int) -> None:
    names = listed(form, first, 12)
    order, note = class_order(names, plain(12))
    assert order == [int("".join(c for c in name if c.isdigit())) - first for name in names]
    certain = first == 0 and form.startswith("{") and not form.endswith("x")
    assert (note is None) == certain
    assert certain or (note and "is assumed" in note and "is output 11" in note)


@pytest.mark.parametrize("form", ["{}", "{:02}", "n{}", "n{:02}", "label {}"])
def test_the_models_own_names_come_first(form: str) -> None:
    own = [form.format(i) for i in range(1, 13)]
    names = listed(form, 1, 12)
    assert class_order(names, config(own)) == ([own.index(name) for name in names], None)
    assert class_order(names[:5], config(own)) == ([own.index(name) for name in names[:5]], None), "some classes only"
    student = plain(12)
    assert class_order(names, student, config(own)) == class_order(names, config(own)), "the teacher's names"


def test_leading_zeros_case_and_blanks_are_no_difference() -> None:
    assert class_order(("01", "10", "02"), config(["1", "2", "10"])) == ([0, 2, 1], None)
    assert class_order(("Tabby_Cat", "DOG"), config(["dog", "tabby  cat"])) == ([1, 0], None)
    assert class_order(("LABEL_2", "LABEL_10"), plain(11))[0] == [2, 10]


@pytest.mark.parametrize(
    ("names", "own"),
    [
        (("0", "1", "2"), ["1", "2", "3"]),  # numbers that the model calls otherwise
        (("5", "12"), [f"LABEL_{i}" for i in range(10)]),
        (("1", "2", "3"), [f"LABEL_{i}" for i in range(2)]),
        (("n3", "n7"), [f"LABEL_{i}" for i in range(10)]),  # some of many, by nothing but a place
        (("1", "01"), ["LABEL_0", "LABEL_1"]),
        (("Cat", "cat"), ["cat", "dog"]),
        (("cat", "cow"), ["cat", "dog"]),
    ],
)
def test_what_cannot_be_known_is_refused(names: tuple[str, ...], own: list[str]) -> None:
    with pytest.raises(ValueError, match=r"not among its names|are one name"):
        class_order(names, config(own))


def test_numbers_are_outputs_beside_names_of_another_kind() -> None:
    animals = config(["cat", "dog", "cow"])
    assert class_order(("2", "0"), animals) == ([2, 0], None)
    order, note = class_order(("1", "2", "3"), animals)
    assert order == [0, 1, 2] and note and "counted from 1" in note
    order, note = class_order(("1", "2"), animals)
    assert order == [1, 2] and note and "begin at 0" in note
    order, note = class_order(("10", "20", "3"), plain(3))
    assert order == [1, 2, 0] and note


def test_names_of_a_config() -> None:
    assert names_of(plain(3)) == names_of(config(["0", "1"])) == [] and names_of(config(["a", "0"])) == ["a", "0"]
    wrong: Any = PretrainedConfig(id2label={1: "a", 2: "b"}, label2id={"a": 1, "b": 2})
    with pytest.raises(ValueError, match=r"names the outputs \[1, 2\].*number them from 0"):
        names_of(wrong)
    assert sorted(["10", "9", "a10", "a9", "b", "2x1"], key=natural) == ["2x1", "9", "10", "a9", "a10", "b"]


@pytest.mark.parametrize(
    ("accuracy", "samples", "classes", "low"),
    [
        (0.0, 10, 2, True), (0.0, 9, 2, False), (0.1, 400, 2, True), (0.45, 100, 2, False), (0.45, 10_000, 2, True),
        (0.0, 50, 10, False), (0.0, 70, 10, True), (0.09, 1000, 10, False), (0.0, 1000, 1000, False),
        (0.0, 50_000, 1000, True), (0.5, 1000, 2, False), (1.0, 5, 2, False), (0.0, 1000, 1, False), (0.0, 0, 0, False),
    ],
)  # fmt: skip
def test_a_score_below_chance_is_told_where_guessing_would_not_get_it(
    accuracy: float, samples: int, classes: int, low: bool
) -> None:
    note = below_chance(accuracy, samples, classes)
    assert (note is not None) == low and (not low or "below chance" in str(note))
    if low:
        exact = sum(
            math.comb(samples, k) * (classes - 1) ** (samples - k) for k in range(round(accuracy * samples) + 1)
        ) / classes**samples if samples < 1000 else 0  # fmt: skip
        assert exact < 1e-3


def test_correlations_and_perplexities_below_chance() -> None:
    assert below_zero("pearson", -0.9, 5) is None and below_zero("pearson", -0.1, 100) is None
    assert "pearson is -0.5000 on 100" in str(below_zero("pearson", -0.5, 100))
    assert worse_than_uniform(105, 100) is None and "guessing one of the 100 tokens" in str(
        worse_than_uniform(300, 100)
    )
    assert "below chance" in str(worse_than_uniform(math.inf, 100))


def test_a_label_outside_of_the_datas_names_is_refused(tmp_path: Path) -> None:
    names = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog", "bird"])})
    for label in (2, 3):
        rows = {"image": [{"bytes": b"", "path": "a.png"}] * 2, "label": [0, label]}
        table = pyarrow.table(rows, schema=names.arrow_schema)
        pyarrow.parquet.write_table(table, tmp_path / "test.parquet")
        pictures = open_pictures(ImageSource(str(tmp_path / "test.parquet")))
        assert pictures.names == ("cat", "dog", "bird")
        if label < 3:
            assert [picture.label for picture in pictures] == [0, 2]
        else:
            with pytest.raises(ValueError, match="row 1 has label 3, and the data names 3 classes"):
                list(pictures)
