"""Labelled images, streamed: from a folder with one folder for each class, from parquet files, or from the Hub."""

import glob
import logging
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn, final

import datasets
import pyarrow
from datasets.exceptions import DatasetsError
from PIL import Image

from zsaq.eval.decoding import SUFFIXES, decoded
from zsaq.eval.labels import class_order, natural
from zsaq.eval.reading import SHARD, inside, shards
from zsaq.eval.remarks import told

logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)  # what these log they raise, too

__all__ = ["ImageSource", "Picture", "Pictures", "class_order", "open_pictures"]

DAMAGED: Final = (DatasetsError, pyarrow.ArrowException, RuntimeError, LookupError, TypeError, AttributeError)


@final
@dataclass(frozen=True)
class Picture:
    """One row, not decoded yet: an encoded image or the file that holds it, and its class in the order of the data."""

    content: bytes | Path
    label: int
    name: str = field(default="", compare=False)

    def image(self) -> Image.Image:
        """The picture in RGB as it is seen, see `zsaq.eval.decoding`. Raises ValueError if it is none."""
        return decoded(self.content, self.name)[0]


@final
@dataclass(frozen=True)
class ImageSource:
    """Where labelled images come from.

    `data`: a folder with parquet files, else with a folder for each class; one parquet file; or the id of a data set
    on the Hub. `split`: of the Hub's data set; a folder inside of `data`; or what the parquet files' names begin
    with. `columns`: of the image and of its label.
    """

    data: str
    split: str | None = None
    columns: tuple[str, str] = ("image", "label")

    def folder(self) -> Path:
        path = Path(os.path.expanduser(self.data))
        inside = path / self.split if self.split else path
        return inside if inside.is_dir() else path

    def parquet(self) -> list[Path]:
        """The shards of one split, none if there is none. Raises ValueError for files of several splits, and where
        shards are missing."""
        path = self.folder()
        if path.is_file():
            return [path] if path.suffix == ".parquet" else []
        files = shards(path, self.split if self.split and path.name != self.split else "")
        if len(splits := {SHARD.sub("", file.stem) for file in files}) > 1:
            raise ValueError(f"{path} holds {sorted(splits)}: name one of them as the split")
        return files


@final
@dataclass(frozen=True)
class Pictures:
    """The images of a source, in order, read anew at every iteration. `names`: of the labels, if the data has any;
    `notes`: what lies beside them and is not read; `folder`: where files lie that a table may name."""

    names: tuple[str, ...] | None
    rows: datasets.IterableDataset | tuple[Picture, ...]
    columns: tuple[str, str]
    notes: tuple[str, ...] = ()
    folder: Path | None = None

    def __iter__(self) -> Iterator[Picture]:
        number = -1
        try:
            for number, row in enumerate(self.rows):
                yield row if isinstance(row, Picture) else self._picture(row, number)
        except DAMAGED as error:
            raise ValueError(f"the table of pictures cannot be read beyond row {number}: {error}") from error

    def name(self, number: int) -> str:
        """Of the picture at that place, for people."""
        return self.rows[number].name if isinstance(self.rows, tuple) else f"row {number}"

    def _picture(self, row: dict[str, Any], number: int) -> Picture:
        image, label = (row[column] for column in self.columns)
        content, path = (image["bytes"], image["path"]) if image is not None else (None, None)
        if content is None:
            content = b"" if path is None else inside(self.folder, path)
        place = class_number(label, number)
        if self.names is not None and place >= len(self.names):
            raise ValueError(
                f"row {number} has label {place}, and the data names {len(self.names)} classes, from 0 on: correct the "
                "label, or the names in the table"
            )
        return Picture(content, place, f"row {number}")


def open_pictures(source: ImageSource) -> Pictures:
    """Open a source; nothing is decoded. Raises ValueError if it holds no images or lacks a column; its rows raise it
    as they are read, for a label that is none of the names."""
    path = Path(os.path.expanduser(source.data))
    files = source.parquet() if source.data and path.exists() else []
    if not files and path.is_dir() and source.data:
        return _of_folders(source)
    if source.data and path.exists():
        if not files:
            raise ValueError(f"{source} holds neither a folder for each class nor parquet files of that split")
        patterns = [glob.escape(str(file)) for file in files]
        options: dict[str, Any] = {"path": "parquet", "data_files": patterns, "split": "train"}
    elif not source.data or source.data.startswith((".", "/", "~")) or path.suffix:
        raise ValueError(f"{source.data!r} does not exist: give a folder, a parquet file, or an id on the Hub")
    else:
        options = {"path": source.data, "split": source.split or "validation"}
    try:
        rows: Any = datasets.load_dataset(streaming=True, **options)
        features = rows.features or {}
    except DAMAGED as error:
        raise ValueError(f"{source.data} cannot be read as a data set: {error}") from error
    if missing := set(source.columns) - set(features):
        raise ValueError(f"{source.data} has the columns {list(features)} and lacks {sorted(missing)}: name them")
    image, label = source.columns
    if not _holds_pictures(features[image]):
        raise ValueError(f"{source.data}: the column {image!r} holds {features[image]}: give one of encoded pictures")
    kind = features[label]
    names = tuple(kind.names) if isinstance(kind, datasets.ClassLabel) else None
    folder = files[0].parent if files else None
    beside = _named(sorted(entry for entry in folder.iterdir() if entry.is_dir())) if folder and path.is_dir() else []
    notes = (told(beside, "are folders beside the parquet files and are not read"),) if beside else ()
    return Pictures(names, rows.cast_column(image, datasets.Image(decode=False)), source.columns, notes, folder)


def _holds_pictures(feature: Any) -> bool:
    if isinstance(feature, dict):
        return set(feature) == {"bytes", "path"}
    texts = ("string", "large_string", "binary", "large_binary")
    return isinstance(feature, datasets.Image) or (isinstance(feature, datasets.Value) and feature.dtype in texts)


def _of_folders(source: ImageSource) -> Pictures:
    """The folders' pictures in the order of their names, numbers as numbers, and notes on all that is none."""
    root, data = source.folder(), Path(os.path.expanduser(source.data))
    if source.split and root == data and root.resolve().name != source.split:
        raise ValueError(f"{data} holds neither a folder {source.split!r} nor parquet files of that split")
    entries = sorted(root.iterdir(), key=lambda entry: natural(entry.name))
    classes = [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    if not classes:
        raise ValueError(f"{source} holds neither a folder for each class nor parquet files of that split")
    images, others, empty = [], [], []
    for label, folder in enumerate(classes):
        before = len(images)
        for file in _files(folder):
            if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file():
                images.append(Picture(file, label, str(file.relative_to(root))))
            else:
                others.append(str(file.relative_to(root)))
        empty += [folder.name] if len(images) == before else []
    if not images:
        raise ValueError(f"the folders in {root} hold no images ({', '.join(SUFFIXES)}): name a split")
    beside = _named([entry for entry in entries if entry not in classes])
    found = (
        (beside, f"lie beside the class folders in {root} and are not read"),
        (others, f"in the class folders are not named as pictures ({', '.join(SUFFIXES)}) and were left out"),
        (empty, "are class folders without pictures"),
    )
    notes = tuple(told(names, what) for names, what in found if names)
    return Pictures(tuple(folder.name for folder in classes), tuple(images), source.columns, notes)


def _named(entries: list[Path]) -> list[str]:
    return [entry.name for entry in entries]


def _files(folder: Path) -> list[Path]:
    """All files below, and links to folders, which are not followed. Raises OSError for a folder that is closed."""

    def closed(error: OSError) -> NoReturn:
        raise error

    found: list[Path] = []
    for place, folders, files in os.walk(folder, onerror=closed):
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        found += (Path(place, name) for name in (*files, *links))
    return sorted(found)


def class_number(label: Any, number: int) -> int:
    """The class that a table gives for its row, an integer, or one as text or float. Raises ValueError for others."""
    if isinstance(label, str) and re.fullmatch(r"\s*\d{1,18}\s*", label):
        return int(label)
    if isinstance(label, float) and math.isfinite(label) and label.is_integer():
        label = int(label)
    if type(label) is not int or label < 0:
        raise ValueError(
            f"row {number} has label {label!r:.100}: it must be an integer, the number of a class (-1 marks rows "
            "without a label, as of test splits)"
        )
    return label
