"""What a model card tells of a run: base model, method, scores with their spread, and whether any data was seen.

What the files themselves tell (grids, coverage, bytes, pictures) is read from them when the card is written
(zsaq/readme.py); a Card holds the rest, and what is not known stays out.
"""

import hashlib
import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, final

from huggingface_hub import ModelCard
from huggingface_hub import try_to_load_from_cache as cached
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from zsaq.quant.config import QuantConfig

KEYS: Final = {"rows": list, "metrics": dict, "config": dict, "method": str, "zero_shot": bool, "seed": int}


@final
@dataclass(frozen=True)
class Base:
    """What was quantized. `id`, `revision`: on the Hub, with the commit; `sha256`: of a local folder's weights.

    `license`: metadata of its card ("license", and for "other" its "license_name" and "license_link").
    """

    name: str
    license: Mapping[str, str]
    id: str | None = None
    revision: str | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        if not self.license.get("license") or not set(self.license) <= {"license", "license_name", "license_link"}:
            raise ValueError(f"license of {self.name} is {dict(self.license)!r}; give {{'license': 'apache-2.0'}}")
        if self.id is not None:
            validate_repo_id(self.id)

    @classmethod
    def of(cls, source: str | Path, license: str | None = None) -> "Base":
        """Of a folder or a Hub id; the licence from its card, in the folder, the cache or the Hub, unless given.

        Raises ValueError if neither tells a licence.
        """
        folder = Path(source).expanduser()
        local = folder.is_dir()
        if license is not None:
            terms = {"license": license}
        else:
            terms = _license(folder / "README.md" if local else str(source))
            if not terms:
                raise ValueError(
                    f"the card of {source} names no licence, or cannot be read here: give the licence of the base model"
                )
        if local:
            return cls(folder.resolve().name, terms, sha256=_digest(folder))
        config = cached(str(source), "config.json")
        return cls(str(source), terms, str(source), Path(config).parent.name if isinstance(config, str) else None)


def _license(card: str | Path) -> dict[str, str]:
    if isinstance(card, Path) and not card.is_file():
        return {}
    try:
        told = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled):
        return {}
    terms = {key: told.get(key) for key in ("license", "license_name", "license_link")}
    return {key: value for key, value in terms.items() if isinstance(value, str) and value}


def _digest(folder: Path) -> str | None:
    """SHA-256 over the weight files in the order of their names; of a single file, the file's own."""
    files = sorted(folder.glob("*.safetensors"))
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                total.update(block)
    return total.hexdigest() if files else None


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
class Score:
    """One metric of one model (`model` "teacher" is the base), with a value for each seed. Raises ValueError for none,
    and for values that are not finite."""

    model: str
    metric: str
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values or not all(math.isfinite(value) for value in self.values):
            raise ValueError(f"{self.metric} of {self.model} is {self.values}; give finite values, one for each seed")

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float | None:
        """The sample's standard deviation over seeds; None for one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def __str__(self) -> str:
        return f"{self.mean:.4f}" if self.spread is None else f"{self.mean:.4f} ± {self.spread:.4f}"


@final
@dataclass(frozen=True)
class Card:
    """What is known about a run.

    `method`: also the name of the student's scores; `seeds`: the first is that of the weights; `budget`, `versions`:
    as the run tells them; `recipe`: a path or link, `recipe_sha256`: of its text; `base_bytes`: of the base model's
    weights as saved; `limits`: beside those that hold for every student. Raises ValueError for what cannot be, above
    all an oracle that calls itself zero-shot.
    """

    base: Base
    method: str
    zero_shot: bool
    seeds: tuple[int, ...]
    data: Data | None = None
    scores: tuple[Score, ...] = ()
    budget: Mapping[str, Any] = field(default_factory=dict)
    recipe: str | None = None
    recipe_sha256: str | None = None
    base_bytes: int | None = None
    language: str | None = None
    limits: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    config: QuantConfig | None = None

    def __post_init__(self) -> None:
        if self.zero_shot and "oracle" in self.method:
            raise ValueError(f"{self.method} is an oracle, which sees real data: it cannot be zero_shot")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds is {self.seeds}; give those of the run, the weights' own first, each once")
        if self.scores and self.data is None:
            raise ValueError("scores need data: give what they were taken on")
        for score in self.scores:
            if len(score.values) != len(self.seeds):
                raise ValueError(f"{score.model} has {len(score.values)} values of {score.metric} for {self.seeds}")

    @classmethod
    def of(cls, folder: str | Path, *repeats: str | Path, base: Base | None = None, **more: Any) -> "Card":
        """Of a recipe's output folder, and of the same run's with other seeds; `more`: language, limits.

        Raises ValueError for a folder without a readable results.json, one that does not say whether real data was
        read, and repeats that differ in more than the seed.
        """
        runs = [_results(Path(path)) for path in (folder, *repeats)]
        first = runs[0]
        for path, run in zip(repeats, runs[1:], strict=True):
            for key in ("config", "method", "zero_shot", "budget", "data", "base", "recipe", "metrics"):
                if run.get(key) != first.get(key):
                    raise ValueError(f"{path} has another {key} than {folder}: it is another run, not another seed")
        if base is None:
            if not isinstance(first.get("base"), dict):
                raise ValueError(f"{folder} does not say what was quantized: give base=Base.of(folder or Hub id)")
            base = Base(**first["base"])
        values: dict[tuple[str, str], list[float]] = {}
        for run in runs:
            for row in run["rows"]:
                for metric, key in run["metrics"].items():
                    if key in row:
                        values.setdefault((row["name"], metric), []).append(row[key])
        sizes = {row["name"]: row["bytes"] for row in first["rows"]}
        data = Data(**first["data"]) if first.get("data") else None
        scores = tuple(Score(*key, tuple(told)) for key, told in values.items()) if data else ()
        return cls(
            base, first["method"], first["zero_shot"], tuple(run["seed"] for run in runs), data, scores,
            first.get("budget", {}), **first.get("recipe", {}), base_bytes=sizes.get("teacher"),
            versions=first.get("versions", {}), config=QuantConfig.from_dict(first["config"]), **more,
        )  # fmt: skip


def _results(folder: Path) -> dict[str, Any]:
    path = folder / "results.json"
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}): give a recipe's output folder, or make a Card") from error
    for key, kind in KEYS.items():
        if not isinstance(told, dict) or type(told.get(key)) is not kind:
            raise ValueError(f"{path} has no {key} ({kind.__name__}): run the recipe again with this version of zsaq")
    return told
