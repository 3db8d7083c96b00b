"""Text files, tables and what they name, from people who may have given something else."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import datasets
import pyarrow
import pyarrow.parquet

SHARD: Final = re.compile(r"-(\d{5})-of-(\d{5})$")


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, with \\n between its lines and without a byte order mark.

    Raises ValueError for no file, another encoding, and zero bytes.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is no file: give a UTF-8 text file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8") from error
    if "\0" in text:
        raise ValueError(f"{path} holds zero bytes: it is no text, or UTF-16: save it as UTF-8")
    return text


def read_table(path: Path) -> list[dict[str, Any]]:
    """The rows of a .parquet, .tsv (a header line, no quoting) or .jsonl file; of .tsv the values are text.

    Raises ValueError, with the name and the line, for what cannot be read.
    """
    if path.suffix == ".parquet":
        try:
            return pyarrow.parquet.read_table(path).to_pylist()
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise ValueError(f"{path} is no readable parquet file: {error}") from error
    text = read_text(path)
    if path.suffix == ".tsv":
        return _tabbed(path, [line.split("\t") for line in text.split("\n") if line])
    return [_object(path, number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def label_names(path: Path, column: str) -> list[str] | None:
    """What a parquet file calls the classes of a column, in the order of their numbers; None if it does not."""
    try:
        kind = datasets.Features.from_arrow_schema(pyarrow.parquet.read_schema(path)).get(column)
    except (pyarrow.ArrowException, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: its notes on the columns cannot be read: {error}") from error
    return list(kind.names) if isinstance(kind, datasets.ClassLabel) else None


def _tabbed(path: Path, rows: list[list[str]]) -> list[dict[str, Any]]:
    header = rows[0] if rows else []
    if len(set(header)) < len(header):
        raise ValueError(f"{path} has the columns {header}: give each a name of its own")
    for number, row in enumerate(rows[1:], 1):
        if len(row) > len(header):
            raise ValueError(
                f"{path}: row {number} has {len(row)} fields, the header {len(header)}: a field may hold no tab"
            )
    return [dict(zip(header, row + [None] * (len(header) - len(row)), strict=True)) for row in rows[1:]]


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}, line {number} is no JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"{path}, line {number} is {line.strip()!r:.100}: give a JSON object on each line")
    return row


def shards(folder: Path, start: str) -> list[Path]:
    """The parquet files in `folder` whose names begin with `start`, in order. Raises ValueError where some of a number
    of shards are missing."""
    files = sorted(path for path in folder.glob("*.parquet") if path.name.startswith(start))
    return whole(files)


def whole(files: Iterable[Path]) -> list[Path]:
    """The files, if all shards of each table are among them; ValueError if not."""
    files = list(files)
    tables: dict[str, set[int]] = {}
    for file in files:
        if found := SHARD.search(file.stem):
            tables.setdefault(f"{file.stem[: found.start()]}, of {int(found[2])}", set()).add(int(found[1]))
    for table, numbers in tables.items():
        count = int(table.rpartition(" ")[2])
        if missing := sorted(set(range(count)) - numbers):
            raise ValueError(f"{files[0].parent}: {table} shards those of number {missing[:5]} are missing: fetch them")
    return files


def inside(folder: Path | None, name: str) -> Path:
    """The file that a table names, which has to lie in the data's folder. Raises ValueError for any other place: an
    address, an absolute path, a path that leads out, by links too; and where there is no folder."""
    path = Path(name)
    wrong = "://" in name or "\0" in name or path.is_absolute() or path.drive or ".." in path.parts
    if folder is None or wrong or not (folder / path).resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"the table names the picture {name!r:.200}, which is not in the data's own folder: put the pictures "
            "there, and name them from there, or put them into the table"
        )
    return folder / path
