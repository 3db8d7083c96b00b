"""The eight GLUE tasks: columns, labels, metrics; their rows from the Hub or from local files; their label order."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor
from transformers import PretrainedConfig

from zsaq.eval.labels import names_of
from zsaq.eval.reading import SHARD, label_names, read_table, shards

HUB = "nyu-mll/glue"
Example = Mapping[str, Any]


@dataclass(frozen=True)
class Task:
    """One entry of the GLUE table (Wang et al. 2018).

    `columns`: one sentence or a pair. `labels`: class names in GLUE's order, none for regression (STS-B, 0 to 5).
    `metrics`: names of `zsaq.eval.metrics.METRICS`.
    `suffix`: what the validation and test splits' names end in (MNLI: matched or mismatched).
    """

    name: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    config: str
    suffix: str = ""

    @property
    def outputs(self) -> int:
        """Width of a fitting model's logits."""
        return len(self.labels) or 1


PAIR, ENTAILED = ("sentence1", "sentence2"), ("entailment", "not_entailment")
NLI, THREE = ("premise", "hypothesis"), ("entailment", "neutral", "contradiction")
TASKS = {
    task.name: task
    for task in (
        Task("cola", ("sentence",), ("unacceptable", "acceptable"), ("matthews_correlation",), "cola"),
        Task("sst2", ("sentence",), ("negative", "positive"), ("accuracy",), "sst2"),
        Task("mrpc", PAIR, ("not_equivalent", "equivalent"), ("accuracy", "f1"), "mrpc"),
        Task("stsb", PAIR, (), ("pearson", "spearmanr"), "stsb"),
        Task("qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1"), "qqp"),
        Task("mnli", NLI, THREE, ("accuracy",), "mnli", "_matched"),
        Task("mnli-mm", NLI, THREE, ("accuracy",), "mnli", "_mismatched"),
        Task("qnli", ("question", "sentence"), ENTAILED, ("accuracy",), "qnli"),
        Task("rte", PAIR, ENTAILED, ("accuracy",), "rte"),
    )
}
SYNONYMS = {"neg": "negative", "pos": "positive"}


def find_task(task: Task | str) -> Task:
    """The task of that name ("mnli" is matched, "mnli-mm" mismatched); `ValueError` for an unknown one."""
    if isinstance(task, Task):
        return task
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}: give one of {', '.join(TASKS)}")
    return TASKS[task]


def read_rows(task: Task | str, split: str = "validation", data_dir: str | Path | None = None) -> list[Example]:
    """The rows of one split, or of several joined by "+" ("validation+test"), in order.

    Without `data_dir` they come from the Hub's nyu-mll/glue. With it, from `data_dir/<task>/<split>.*` or
    `data_dir/<split>.*`, as .parquet (or the Hub's shards <split>-00000-of-00001.parquet), .tsv with a header line
    (no quoting, as GLUE's) or .jsonl, all with GLUE's column names. MNLI's splits are validation_matched and so on.

    Raises `ValueError` for a missing file, wrong columns or labels (see :func:`targets`).
    """
    task = find_task(task)
    rows: list[Example] = []
    for name in split.split("+"):
        name = name if name == "train" else name + task.suffix
        if data_dir is None:
            rows += datasets.load_dataset(HUB, task.config, split=name).to_list()
        else:
            rows += _read_local(task, name, Path(data_dir))
    targets(task, rows)
    return rows


def _read_local(task: Task, split: str, data_dir: Path) -> Iterable[Example]:
    for folder in (data_dir / task.config, data_dir):
        files = [file for kind in ("parquet", "tsv", "jsonl") if (file := folder / f"{split}.{kind}").is_file()]
        if len(files) > 1:
            raise ValueError(f"{task.name}: {', '.join(map(str, files))} all hold {split!r}: keep one of them")
        parts = [file for file in shards(folder, f"{split}-") if SHARD.sub("", file.stem) == split]
        if files or parts:
            return [row for file in files or parts for row in _in_glues_order(task, file, read_table(file))]
    raise ValueError(
        f"{task.name}: no file for split {split!r} in {data_dir / task.config} or {data_dir}: "
        f"put {split}.parquet, {split}.tsv or {split}.jsonl there, or name another split"
    )


def _in_glues_order(task: Task, file: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, where a parquet file names its labels in another order than GLUE. Raises ValueError for other names."""
    names = label_names(file, "label") if file.suffix == ".parquet" and task.labels else None
    if names is None or all(name in (f"LABEL_{i}", str(i)) for i, name in enumerate(names)):
        return rows
    plain, wanted = [_plain(name) for name in names], [_plain(name) for name in task.labels]
    if sorted(plain) != sorted(wanted):
        raise ValueError(
            f"{task.name}: {file} names its labels {names}, GLUE's are {list(task.labels)}: give data of this task"
        )
    place = {number: wanted.index(name) for number, name in enumerate(plain)}
    return [row | {"label": place.get(row["label"], row["label"])} for row in rows]


def targets(task: Task, rows: Sequence[Example]) -> Tensor:
    """The rows' labels, int64 class indices or float64 scores, shape (n,). Label names are accepted for indices.

    Raises `ValueError` for no rows, a missing column, a sentence that is no text or a label outside the range.
    """
    if not len(rows):
        raise ValueError(f"{task.name}: the split is empty: give at least one row")
    values: list[float] = []
    for number, row in enumerate(rows):
        if missing := {*task.columns, "label"} - set(row):
            raise ValueError(f"{task.name}: row {number} has columns {sorted(row)} and lacks {sorted(missing)}")
        for column in task.columns:
            if not isinstance(row[column], str):
                raise ValueError(
                    f"{task.name}: row {number}, column {column!r} is {row[column]!r:.99}: it must be text"
                )
        values.append(_target(task, number, row["label"]))
    return torch.tensor(values, dtype=torch.int64 if task.labels else torch.float64)


def _target(task: Task, number: int, label: object) -> float:
    if label in task.labels:
        return task.labels.index(str(label))
    allowed = f"0 to {len(task.labels) - 1} or one of {', '.join(task.labels)}" if task.labels else "0 to 5"
    wrong = ValueError(
        f"{task.name}: row {number} has label {label!r:.100}, allowed is {allowed} (GLUE hides its test labels as -1)"
    )
    if not isinstance(label, int | float | str) or isinstance(label, bool):
        raise wrong
    try:
        value = float(label)
    except (ValueError, OverflowError):
        raise wrong from None
    fits = value in range(len(task.labels)) if task.labels else 0 <= value <= 5
    if not fits:
        raise wrong
    return int(value) if task.labels else value


def label_order(task: Task, *configs: PretrainedConfig) -> tuple[list[int], str | None]:
    """Where the model puts GLUE's labels: `logits[:, order]` is in GLUE's order; and a note for people, if one is due.

    The model's config first, then its teacher's: the first that names its labels decides. Generic names (LABEL_0, 0)
    leave GLUE's order, with a note. Raises `ValueError` for a head of another width or names that are not the task's.
    """
    identity = list(range(task.outputs))
    for config in configs:
        if config.num_labels != task.outputs:
            raise ValueError(
                f"{task.name} needs a head with {task.outputs} outputs, the model's has {config.num_labels}: "
                f"give a model fine-tuned on {task.name}"
            )
        names = names_of(config) if task.labels else []
        if not names:
            continue
        plain, wanted = [_plain(name) for name in names], [_plain(name) for name in task.labels]
        if sorted(plain) != sorted(wanted):
            raise ValueError(
                f"{task.name}: the config names its labels {names}, GLUE's are {list(task.labels)}: "
                "give a model of this task, or correct id2label in its config.json"
            )
        order = [plain.index(name) for name in wanted]
        return order, None if order == identity else f"outputs {names} re-ordered to GLUE's {list(task.labels)}"
    if not task.labels:
        return identity, None
    return identity, f"the config does not name its labels: GLUE's order {list(task.labels)} is assumed"


def _plain(name: str) -> str:
    letters = re.sub("[^a-z]", "", name.lower())
    return SYNONYMS.get(letters, letters)
