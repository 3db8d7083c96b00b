"""Labelled images, streamed: from a folder with one folder for each class, from parquet files, or from the Hub."""

import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import datasets
from PIL import Image
from transformers import PretrainedConfig

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".tif", ".tiff")
SYNSET = re.compile(r"n\d{8}")
SHARD = re.compile(r"-\d{5}-of-\d{5}$")


@final
@dataclass(frozen=True)
class Picture:
    """One row, not decoded yet: an encoded image or the file that holds it, and its class in the order of the data."""

    content: bytes | Path
    label: int

    def image(self) -> Image.Image:
        """The decoded image. Raises ValueError if it is none."""
        try:
            with Image.open(io.BytesIO(self.content) if isinstance(self.content, bytes) else self.content) as image:
                image.load()
                return image
        except (OSError, SyntaxError) as error:
            what = f"{len(self.content)} bytes" if isinstance(self.content, bytes) else self.content
            raise ValueError(f"{what} are no readable image: {error}") from error


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
        path = Path(self.data).expanduser()
        inside = path / self.split if self.split else path
        return inside if inside.is_dir() else path

    def parquet(self) -> list[str]:
        """The shards of one split, none if there is none. Raises ValueError for files of several splits."""
        path = self.folder()
        if path.is_file():
            return [str(path)] if path.suffix == ".parquet" else []
        start = self.split if self.split and path.name != self.split else ""
        files = sorted(path.glob(f"{start}*.parquet"))
        if len(splits := {SHARD.sub("", file.stem) for file in files}) > 1:
            raise ValueError(f"{path} holds {sorted(splits)}: name one of them as the split")
        return [str(file) for file in files]


@final
@dataclass(frozen=True)
class Pictures:
    """The images of a source, in order, read anew at every iteration. `names`: of the labels, if the data has any."""

    names: tuple[str, ...] | None
    rows: datasets.IterableDataset | tuple[Picture, ...]
    columns: tuple[str, str]

    def __iter__(self) -> Iterator[Picture]:
        for number, row in enumerate(self.rows):
            yield row if isinstance(row, Picture) else _picture(row, number, self.columns)


def open_pictures(source: ImageSource) -> Pictures:
    """Open a source; nothing is decoded. Raises ValueError if it holds no images or lacks a column."""
    path = Path(source.data).expanduser()
    files = source.parquet() if path.exists() else []
    if not files and path.is_dir() and (classes := [f for f in sorted(source.folder().iterdir()) if f.is_dir()]):
        images = [
            Picture(file, label)
            for label, folder in enumerate(classes)
            for file in sorted(folder.rglob("*"))
            if file.suffix.lower() in SUFFIXES
        ]
        if not images:
            raise ValueError(f"the folders in {source.folder()} hold no images ({', '.join(SUFFIXES)}): name a split")
        return Pictures(tuple(folder.name for folder in classes), tuple(images), source.columns)
    if path.exists():
        if not files:
            raise ValueError(f"{source} holds neither a folder for each class nor parquet files of that split")
        rows = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    elif source.data.startswith((".", "/", "~")) or path.suffix:
        raise ValueError(f"{source.data!r} does not exist: give a folder, a parquet file, or an id on the Hub")
    else:
        rows = datasets.load_dataset(source.data, split=source.split or "validation", streaming=True)
    assert isinstance(rows, datasets.IterableDataset)
    features = rows.features or {}
    if missing := set(source.columns) - set(features):
        raise ValueError(f"{source.data} has the columns {list(features)} and lacks {sorted(missing)}: name them")
    image, label = source.columns
    kind = features[label]
    names = tuple(kind.names) if isinstance(kind, datasets.ClassLabel) else None
    return Pictures(names, rows.cast_column(image, datasets.Image(decode=False)), source.columns)


def _picture(row: Mapping[str, Any], number: int, columns: tuple[str, str]) -> Picture:
    image, label = (row[column] for column in columns)
    content = image["bytes"] if image["bytes"] is not None else Path(image["path"])
    if type(label) is not int:
        raise ValueError(f"row {number} has label {label!r}: it must be an integer, the number of a class")
    return Picture(content, label)


def class_order(names: tuple[str, ...] | None, config: PretrainedConfig) -> tuple[list[int], str | None]:
    """Which output of the model each label of the data is, and a note for people where that had to be assumed.

    Labels without names, and names that are numbers, are outputs. Other names are looked up in the model's id2label,
    without regard to case and blanks. WordNet ids stand for the outputs in sorted order, as in ImageNet, and so do any
    names where the model names no classes, if there are as many as outputs. Raises ValueError for any other names.
    """
    outputs = list(range(config.num_labels or 0))
    if names is None:
        return outputs, None
    own = [_plain(str(name)) for _, name in sorted((config.id2label or {}).items())]
    given = [_plain(name) for name in names]
    generic = all(name in (f"label_{i}", str(i)) for i, name in enumerate(own))
    if given == own:
        return outputs, None
    if all(name.isdecimal() and int(name) in outputs for name in given):
        return [int(name) for name in given], None
    if not generic and all(own.count(name) == 1 for name in given):
        return [own.index(name) for name in given], None
    if len(given) == len(outputs) and (generic or all(SYNSET.fullmatch(name) for name in given)):
        why = "the model names no classes" if generic else "the data names WordNet ids"
        return outputs, f"{why}: the labels' own order is taken for that of the outputs"
    unknown = [name for name, plain in zip(names, given, strict=True) if own.count(plain) != 1]
    raise ValueError(
        f"the data has {len(names)} classes, the model {len(outputs)}; {unknown[:5]} are not among its names "
        f"{own[:5]} ...: name the folders as the model's id2label does, or by the numbers of its outputs"
    )


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").split()) if not name.startswith("LABEL_") else name.lower()
