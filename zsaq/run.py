"""What a run gave: Results, the one writer and reader of results.json.

One schema, versioned, JSON both ways:

    {"format_version": 1, "model": ..., "method": ..., "config": {...}, "seed": 0, "zero_shot": true, "inputs": ...,
     "budget": {...}, "rows": [{"name": "teacher", "bytes": 9, "seconds": 0.0, "scores": {"accuracy": 0.9}}, ...], ...}
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, final

from huggingface_hub.utils import validate_repo_id

from zsaq.atomic import write_text
from zsaq.form import AGAIN, checked, read_json
from zsaq.quant.config import QuantConfig

RESULTS: Final = "results.json"
VERSION: Final = 1
LATER: Final = {"own_text": {}}  # keys that older files lack, and what they mean there


@final
@dataclass(frozen=True)
class Base:
    """What was quantized. `id`, `revision`: on the Hub, with the commit; `sha256`: of a local folder's weights.

    `license`: metadata of its card ("license", and for "other" its "license_name" and "license_link"); {} where it is
    not known, and then nothing is published. Raises ValueError for other keys and for what is no repository id.
    """

    name: str
    license: Mapping[str, str] = field(default_factory=dict)
    id: str | None = None
    revision: str | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        if self.license and not ({"license"} <= set(self.license) <= {"license", "license_name", "license_link"}):
            raise ValueError(f"license of {self.name} is {dict(self.license)!r}; give {{'license': 'apache-2.0'}}")
        if odd := {key: term for key, term in self.license.items() if not isinstance(term, str) or not plain(term)}:
            raise ValueError(f"license of {self.name} is {odd!r:.200}; give a line of text, such as 'apache-2.0'")
        if "/" in self.license.get("license", "") or "\\" in self.license.get("license", ""):
            raise ValueError(f"license of {self.name} is {self.license['license']!r:.200}; give its name, not a place")
        if self.id is not None:
            validate_repo_id(self.id)


@final
@dataclass(frozen=True)
class Data:
    """What was scored on. `id`, `task`: the Hub's data set and its configuration, only where it came from there."""

    name: str
    id: str | None = None
    task: str | None = None
    split: str | None = None


@final
@dataclass(frozen=True)
class Row:
    """One model of a run. `bytes`: of its weights as saved, None where nobody saved it; `scores`: by metric, the first
    is what tables show. Raises ValueError for a score that is not finite."""

    name: str
    bytes: int | None = None
    seconds: float = 0.0
    scores: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if bad := {k: v for k, v in self.scores.items() if not (isinstance(v, int | float) and finite(v))}:
            raise ValueError(f"scores of {self.name} are not finite numbers: {bad}")


@final
@dataclass(frozen=True)
class Results:
    """What is known about a run; what is not known stays None or empty.

    `model`: what was quantized, as it was given; `inputs`: where the student's inputs came from, in words;
    `knowledge`: words about the model that were used (a prompt, label names); `rows`: the teacher first, then
    baselines, the student last, under its method's name; `own_text`: a causal student's "agreement" and "kl" with the
    teacher on so many "tokens" that this wrote for nothing else; `machine`: device, threads, processes; `fingerprint`:
    of the saved model that they belong to (`zsaq.io.checksums`), which `zsaq.save` fills in. What of `budget` and
    `machine` JSON cannot hold, as a module given to a callable, is kept as its description. Raises ValueError for an
    empty table.
    """

    model: str
    method: str
    config: QuantConfig
    seed: int
    zero_shot: bool
    inputs: str
    rows: tuple[Row, ...]
    budget: Mapping[str, Any] = field(default_factory=dict)
    preset: str | None = None
    coverage: Mapping[str, str] = field(default_factory=dict)
    knowledge: tuple[str, ...] = ()
    own_text: Mapping[str, float] = field(default_factory=dict)
    data: Data | None = None
    base: Base | None = None
    recipe: str | None = None
    recipe_sha256: str | None = None
    seconds: float = 0.0
    machine: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        if not self.rows or self.rows[-1].name != self.method:
            raise ValueError(
                f"rows end with {self.rows[-1:]!r:.200}; the last one is the student's, named {self.method}"
            )
        for name in ("budget", "machine"):
            object.__setattr__(self, name, as_json(getattr(self, name)))

    @property
    def student(self) -> Row:
        return self.rows[-1]

    @property
    def teacher(self) -> Row | None:
        return next((row for row in self.rows if row.name == "teacher"), None)

    @property
    def metrics(self) -> list[str]:
        """The names of all scores, in the order of their first appearance."""
        return list(dict.fromkeys(metric for row in self.rows for metric in row.scores))

    def scored(self, scores: Mapping[str, Mapping[str, float]], data: Data | None) -> "Results":
        """The same with these scores by row, on `data`; a row that is not named loses those it had on other data."""
        kept = self.data == data
        rows = [
            dataclasses.replace(r, scores={**(r.scores if kept else {}), **scores.get(r.name, {})}) for r in self.rows
        ]
        return dataclasses.replace(self, rows=tuple(rows), data=data)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` is its inverse."""
        fields = dataclasses.asdict(dataclasses.replace(self, config=None))  # type: ignore[arg-type]
        return {"format_version": VERSION, **fields, "config": self.config.to_dict()}

    @classmethod
    def from_dict(cls, data: Any) -> "Results":
        """From JSON that nobody has checked yet. Raises ValueError that names what was given and what is allowed."""
        if not isinstance(data, dict) or data.get("format_version") != VERSION:
            version = data.get("format_version") if isinstance(data, dict) else None
            raise ValueError(f"results have format_version {version!r:.40}, this zsaq reads {VERSION}; {AGAIN}")
        fields = checked(LATER | {k: v for k, v in data.items() if k != "format_version"}, cls)
        if (place := endless(data)) is not None:
            raise ValueError(f"results have a number in {place} that is not finite or too large for a float; {AGAIN}")
        parts: dict[str, Any] = {
            "config": QuantConfig.from_saved(fields["config"]),
            "rows": tuple(Row(**checked(row, Row)) for row in fields["rows"]),
            "knowledge": tuple(fields["knowledge"]),
        }
        for name, kind in {"data": Data, "base": Base}.items():
            if fields[name] is not None:
                parts[name] = kind(**checked(fields[name], kind))
        return cls(**{**fields, **parts})

    def write(self, folder: str | Path) -> Path:
        """results.json in `folder`; its path."""
        return write_text(Path(folder) / RESULTS, json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")

    @classmethod
    def read(cls, folder: str | Path) -> "Results":
        """Of `folder`'s results.json. Raises ValueError for none, one that cannot be read, and one of another form."""
        path = Path(folder) / RESULTS
        try:
            return cls.from_dict(read_json(path))
        except ValueError as error:
            raise ValueError(f"{path} cannot be read: {error}") from error


def finite(number: float) -> bool:
    """Whether a float holds the number, which may be any int."""
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def plain(text: str) -> bool:
    """Whether it is a line that any terminal and file can show: something, no control characters, no half of a pair."""
    return bool(text) and text.isprintable()


def endless(data: Mapping[str, Any]) -> str | None:
    """The key of JSON's object `data` below which the first number that is not `finite` lies; None for none."""
    for key, value in data.items():
        left = [value]
        while left:
            each = left.pop()
            if isinstance(each, dict | list):
                left += each.values() if isinstance(each, dict) else each
            elif isinstance(each, int | float) and not finite(each):
                return key
    return None


def as_json(value: Any) -> Any:
    """What JSON gives back for `value`; something that it cannot hold is described by its type, a number by itself."""
    if isinstance(value, Mapping):
        return {str(key): as_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(each) for each in value]
    if isinstance(value, int | float) and not finite(value):
        return str(value)
    return value if value is None or isinstance(value, str | int | float) else f"a {type(value).__name__}"
