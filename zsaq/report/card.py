"""What a model card tells of a run: base model, method, scores with their spread, and whether any data was seen.

What the files themselves tell (grids, coverage, bytes, pictures) is read from them when the card is written
(`zsaq.report.card_text`); a Card holds the rest, and what is not known stays out.
"""

import hashlib
import math
import os
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, final

from huggingface_hub import ModelCard
from huggingface_hub import try_to_load_from_cache as cached
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from yaml import YAMLError

from zsaq.io.record import read_results
from zsaq.quant.config import QuantConfig
from zsaq.report.table import digits
from zsaq.run import Base, Data

OF_A_RUN: Final = ("config", "method", "zero_shot", "budget", "data", "base", "recipe", "metrics")  # not of its seed


def base_of(source: str | Path, license: str | None = None) -> Base:
    """What is quantized, of a folder or a Hub id; the licence from its card, in the folder, the cache or the Hub,
    unless given. It is {} where none is known: nothing is published then."""
    folder = Path(os.path.expanduser(source))
    local = folder.is_dir()
    terms = {"license": license} if license is not None else license_of(folder / "README.md" if local else str(source))
    if local:
        return Base(folder.resolve().name, terms, sha256=digest(folder))
    config = cached(str(source), "config.json")
    return Base(str(source), terms, str(source), Path(config).parent.name if isinstance(config, str) else None)


def metadata_of(source: str | Path) -> dict[str, Any]:
    """The metadata of the card of a folder or Hub id; {} for none, and where it cannot be read."""
    folder = Path(os.path.expanduser(source))
    return metadata(folder / "README.md" if folder.is_dir() else str(source))


def metadata(card: str | Path) -> dict[str, Any]:
    """Of a file or a Hub id."""
    if isinstance(card, Path) and not card.is_file():
        return {}
    try:
        return ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled):
        return {}
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, YAMLError):  # a card of no known form
        return {}


def license_of(card: str | Path) -> dict[str, str]:
    """The terms that a card names, of a file or a Hub id; {} for none, and where it cannot be read."""
    found = metadata(card)
    terms = {key: found.get(key) for key in ("license", "license_name", "license_link")}
    named = {key: " ".join(value.split()) for key, value in terms.items() if isinstance(value, str) and value}
    return named if "license" in named else {}


def digest(folder: Path) -> str | None:
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
class MetricScore:
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
        return digits(self.mean) + ("" if self.spread is None else f" ± {digits(self.spread)}")


@final
@dataclass(frozen=True)
class Card:
    """What is known about a run.

    `method`: also the name of the student's scores; `seeds`: the first is that of the weights; `budget`, `versions`,
    `inputs`, `knowledge`: as in `Results`; `recipe`: a path or link, `recipe_sha256`: of its text; `base_bytes`: of the
    base model's weights as saved; `limits`: beside those that hold for every student. Raises ValueError for what cannot
    be, above all a method on real data (its name ends in "-real") that calls itself zero-shot.
    """

    base: Base
    method: str
    zero_shot: bool
    seeds: tuple[int, ...]
    data: Data | None = None
    scores: tuple[MetricScore, ...] = ()
    budget: Mapping[str, Any] = field(default_factory=dict)
    recipe: str | None = None
    recipe_sha256: str | None = None
    base_bytes: int | None = None
    language: str | None = None
    limits: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    config: QuantConfig | None = None
    inputs: str | None = None
    knowledge: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.zero_shot and self.method.endswith("-real"):
            raise ValueError(f"{self.method} sees real data: it cannot be zero_shot")
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

        Raises ValueError for a folder without readable results of the model there, for repeats that differ in more
        than the seed, and where neither the run nor `base` tells what was quantized.
        """
        runs = [read_results(Path(path)) for path in (folder, *repeats)]
        first = runs[0]
        for path, run in zip(repeats, runs[1:], strict=True):
            for key in OF_A_RUN:
                if getattr(run, key) != getattr(first, key):
                    raise ValueError(f"{path} has another {key} than {folder}: it is another run, not another seed")
        if base is None:
            base = first.base
        if base is None:
            raise ValueError(f"{folder} does not say what was quantized: give base=base_of(folder or Hub id)")
        values: dict[tuple[str, str], list[float]] = {}
        for run in runs if first.data is not None else ():
            for row in run.rows:
                for metric, score in row.scores.items():
                    values.setdefault((row.name, metric), []).append(score)
        return cls(
            base,
            first.method,
            first.zero_shot,
            tuple(run.seed for run in runs),
            first.data,
            tuple(MetricScore(*key, tuple(scores)) for key, scores in values.items()),
            first.budget,
            first.recipe,
            first.recipe_sha256,
            first.teacher.bytes if first.teacher else None,
            versions=first.versions,
            config=first.config,
            inputs=first.inputs,
            knowledge=first.knowledge,
            **more,
        )
