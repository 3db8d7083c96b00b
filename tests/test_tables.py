"""Texts and tables as people have them: long fields, other encodings, damage, labels of every kind, foreign paths."""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from glue_toys import rows
from zsaq.eval import read_rows
from zsaq.eval.images import ImageSource, open_pictures
from zsaq.eval.reading import inside, read_text

GOOD = b"sentence\tlabel\na good film\t1\nbad\t0\n"
READ = [("a good film", "1"), ("bad", "0")]


def split(folder: Path, content: bytes, kind: str = "tsv") -> list[tuple[Any, Any]]:
    (folder / f"validation.{kind}").write_bytes(content)
    return [(row["sentence"], row["label"]) for row in read_rows("sst2", "validation", folder)]


@pytest.mark.parametrize(
    "content",
    [GOOD, b"\xef\xbb\xbf" + GOOD, GOOD.replace(b"\n", b"\r\n"), GOOD.replace(b"\n", b"\r"), GOOD + b"\n\n", GOOD[:-1]],
    ids=["plain", "BOM", "CRLF", "CR", "blank lines", "no last newline"],
)
def test_tables_however_their_lines_end(tmp_path: Path, content: bytes) -> None:
    assert split(tmp_path, content) == READ


def test_fields_of_any_length_and_with_any_signs(tmp_path: Path) -> None:
    long = 'a "good" film ' * 30_000 + "\u2028\x0b\x85 \x1c'"
    assert split(tmp_path, f"sentence\tlabel\n{long}\t1\n".encode()) == [(long, "1")]
    (tmp_path / "validation.tsv").unlink()
    assert split(tmp_path, json.dumps({"sentence": long, "label": 1}).encode(), "jsonl") == [(long, 1)]


@pytest.mark.parametrize(
    ("content", "kind", "said"),
    [
        (GOOD.decode().encode("utf-16"), "tsv", r"is no UTF-8 text \(.* at byte 0\): save it as UTF-8"),
        (GOOD.decode().encode("utf-16-le"), "tsv", "holds zero bytes"),
        (GOOD.replace(b"a good", b"a g\xf6\xf6d"), "tsv", "is no UTF-8 text"),
        (GOOD.replace(b"bad", b"b\0d"), "tsv", "holds zero bytes"),
        (GOOD.replace(b"bad", b"b\tad"), "tsv", "row 2 has 3 fields, the header 2: a field may hold no tab"),
        (b"label\tlabel\n1\t2\n", "tsv", "give each a name of its own"),
        (b"", "tsv", "the split is empty"),
        (b"sentence\tlabel\na good film\n", "tsv", "row 0 has label None"),
        (b'{"sentence": "x", "label": 1}\n{"sentence": ', "jsonl", "line 2 is no JSON"),
        (b"[" * 100_000, "jsonl", "line 1 is no JSON"),
        (b'{"sentence": "x", "label": ' + b"[" * 5000 + b"]" * 5000 + b"}", "jsonl", "line 1 is no JSON|has label"),
        (b'[{"sentence": "x", "label": 1}]', "jsonl", "give a JSON object on each line"),
        (b"7", "jsonl", "give a JSON object on each line"),
        (b"PAR1junkPAR1", "parquet", "is no readable parquet file"),
        (b"", "parquet", "is no readable parquet file"),
    ],
)  # fmt: skip
def test_what_is_no_table_is_told_by_name(tmp_path: Path, content: bytes, kind: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        split(tmp_path, content, kind)


@pytest.mark.parametrize(
    "label",
    [-1, None, True, False, 2, 0.5, "good", "", "[1]", '{"label": 1}', [1], {"label": 1}, 10**400, float("nan"),
     float("inf"), "nan", "9" * 5000, "true"],
)  # fmt: skip
@pytest.mark.parametrize("task", ["sst2", "stsb"])
def test_labels_that_are_none_are_refused(tmp_path: Path, label: Any, task: str) -> None:
    if task == "stsb" and label in (2, 0.5) and label is not True:
        return  # scores
    content = rows(task)
    content[3]["label"] = label
    (tmp_path / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    with pytest.raises(ValueError, match=r"row 3 has label|is no JSON") as refused:
        read_rows(task, "validation", tmp_path)
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize("label", ["1", 1.0, "positive", " 1", "1.0"])
def test_labels_by_name_and_as_text(tmp_path: Path, label: Any) -> None:
    (tmp_path / "validation.jsonl").write_text(json.dumps({"sentence": "x", "label": label}))
    assert len(read_rows("sst2", "validation", tmp_path)) == 1


def test_a_parquet_files_own_order_of_labels(tmp_path: Path) -> None:
    def write(names: list[str]) -> None:
        features = datasets.Features({"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
        data = datasets.Dataset.from_dict({"sentence": ["fun", "dull"], "label": [0, 1]}, features)
        data.to_parquet(tmp_path / "validation.parquet")

    for names, wanted in ((["Positive", "neg"], [1, 0]), (["negative", "positive"], [0, 1]), (["0", "1"], [0, 1])):
        write(names)
        assert [row["label"] for row in read_rows("sst2", "validation", tmp_path)] == wanted
    write(["ham", "spam"])
    with pytest.raises(ValueError, match=r"names its labels \['ham', 'spam'\], GLUE's are"):
        read_rows("sst2", "validation", tmp_path)


@pytest.mark.parametrize("task", [None, "mnli"])
def test_a_shard_that_is_missing_is_told(tmp_path: Path, task: str | None) -> None:
    name = "validation_matched" if task else "validation"
    for part in (0, 2):
        pyarrow.parquet.write_table(pyarrow.table({"x": [1]}), tmp_path / f"{name}-0000{part}-of-00003.parquet")
    with pytest.raises(ValueError, match=r"of 3 shards those of number \[1\] are missing"):
        read_rows(task, "validation", tmp_path) if task else open_pictures(ImageSource(str(tmp_path)))


def test_a_text_is_read_as_text(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes("\ufeffgrün\r\nis it".encode())
    assert read_text(tmp_path / "t.txt") == "grün\nis it"
    (tmp_path / "t.txt").write_bytes("grün".encode("latin-1"))
    for path, said in (
        (tmp_path / "t.txt", "is no UTF-8 text"),
        (tmp_path, "is no file"),
        (tmp_path / "x", "is no file"),
    ):
        with pytest.raises(ValueError, match=said):
            read_text(path)


@pytest.mark.parametrize("kind", ["struct", "text"])
def test_paths_in_tables_stay_in_the_folder(tmp_path: Path, kind: str) -> None:
    data, beside = tmp_path / "data", tmp_path / "secret.png"
    (data / "sub").mkdir(parents=True)
    for path in (beside, data / "sub" / "a.png"):
        Image.new("RGB", (3, 3), "red").save(path)
    (data / "link.png").symlink_to(beside)
    (data / "out").symlink_to(tmp_path)
    column = {"struct": lambda name: {"bytes": None, "path": name}, "text": lambda name: name}[kind]

    def first(name: str) -> Any:
        table = pyarrow.table({"image": [column(name)], "label": [0]})
        pyarrow.parquet.write_table(table, data / "t.parquet")
        return next(iter(open_pictures(ImageSource(str(data / "t.parquet"))))).image()

    assert first("sub/a.png").size == (3, 3)
    for name in (str(beside), "../secret.png", "sub/../../secret.png", "link.png", "out/secret.png",
                 "https://example.com/a.png", "file:///etc/passwd", "hf://a/b.png", "/etc/passwd"):  # fmt: skip
        with pytest.raises(ValueError, match="is not in the data's own folder"):
            first(name)
    with pytest.raises(ValueError, match="no readable image"):
        first("sub/none.png")
    with pytest.raises(ValueError, match="is not in the data's own folder"):
        inside(None, "a.png")


@pytest.mark.parametrize(("label", "number"), [(3, 3), ("3", 3), (" 12 ", 12), (3.0, 3)])
def test_numbers_of_classes_in_tables(tmp_path: Path, label: Any, number: int) -> None:
    folder = tmp_path / "[1]*? ü"  # no pattern
    folder.mkdir()
    table = pyarrow.table({"image": [{"bytes": b"", "path": None}], "label": [label]})
    pyarrow.parquet.write_table(table, folder / "t.parquet")
    assert [row.label for row in open_pictures(ImageSource(str(folder)))] == [number]


@pytest.mark.parametrize("label", [-1, None, True, 0.5, float("nan"), "cat", "", '{"a": 1}', [1], {"a": 1}, b"1"])
def test_other_labels_of_pictures_are_refused(tmp_path: Path, label: Any) -> None:
    table = pyarrow.table({"image": [{"bytes": b"", "path": None}], "label": [label]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"row 0 has label|cannot be read"):
        list(open_pictures(ImageSource(str(tmp_path / "t.parquet"))))


@pytest.mark.parametrize("column", [[1], [[1, 2]], [{"a": 1}], [None]])
def test_columns_without_pictures_are_refused(tmp_path: Path, column: list[Any]) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"image": column, "label": [0]}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="give one of encoded pictures"):
        open_pictures(ImageSource(str(tmp_path / "t.parquet")))
    (tmp_path / "t.parquet").write_bytes(b"PAR1 junk PAR1")
    with pytest.raises(ValueError, match=r"cannot be read|parquet"):
        list(open_pictures(ImageSource(str(tmp_path / "t.parquet"))))
