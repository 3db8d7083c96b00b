"""Runs side by side: methods x configurations x seeds, as mean and spread."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, final

from zsaq.atomic import write_text
from zsaq.form import parsed
from zsaq.report.table import Table, digits

RUNS = "runs.jsonl"
KINDS = {"config": str, "method": str, "zero_shot": bool, "of": dict}
HUGE = 1e300  # beyond it sums of squares have no float
KEYS = ("config", "method", "seed", "zero_shot", "seconds")  # of a run; the rest are scores


@final
@dataclass(frozen=True)
class Comparison:
    """What `zsaq.compare` gives. `runs`: one mapping a run, {"config", "method", "seed", "zero_shot", "seconds", and
    its scores by metric}, in the order in which they were made; a run of the teacher has config ""."""

    runs: tuple[Mapping[str, Any], ...]

    @classmethod
    def read(cls, folder: str | Path, of: Mapping[str, Any]) -> "Comparison":
        """The finished runs of a folder, `of` one model, effort and options.

        Raises ValueError for a line that is no run, and for runs of something else.
        """
        path = Path(folder) / RUNS
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        try:
            runs: list[Any] = [parsed(line) for line in lines]
        except ValueError as error:
            raise ValueError(
                f"{path} holds a line that is no JSON ({error}): take it out, or give a new folder"
            ) from error
        for run in runs:
            if not is_run(run):
                raise ValueError(f"{path} holds {run!r:.200}, which is no run of zsaq.compare: give a new folder")
            if any(run["of"].get(key) != of[key] for key in of):
                raise ValueError(
                    f"{path} holds runs of {run['of']!r:.300}, not of {dict(of)!r:.300}: give a new folder"
                )
        return cls(tuple({key: value for key, value in run.items() if key != "of"} for run in runs))

    def add(self, run: Mapping[str, Any], of: Mapping[str, Any], folder: str | Path | None) -> "Comparison":
        """With one run more, kept in `folder` too."""
        if folder is not None:
            path = Path(folder) / RUNS
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**run, "of": dict(of)}) + "\n")
        return Comparison((*self.runs, run))

    def holds(self, config: str, method: str, seed: int | None) -> bool:
        """Whether that run is done; with seed None, for any seed."""
        return any(
            (run["config"], run["method"]) == (config, method) and seed in (None, run["seed"]) for run in self.runs
        )

    @property
    def metrics(self) -> list[str]:
        """The names of all scores, in the order of their first appearance."""
        return list(dict.fromkeys(key for run in self.runs for key in run if key not in KEYS))

    def groups(self) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
        """The runs by (config, method)."""
        keys = dict.fromkeys((run["config"], run["method"]) for run in self.runs)
        return {key: [run for run in self.runs if (run["config"], run["method"]) == key] for key in keys}

    def rows(self) -> list[dict[str, Any]]:
        """A row for each (config, method): seeds, whether data was seen, and of every number mean and standard
        deviation over seeds (`<metric>`, `<metric> sd`; no deviation for one seed)."""
        rows = []
        for (config, method), runs in self.groups().items():
            row: dict[str, Any] = {"config": config, "method": method, "seeds": len(runs)}
            row["data seen"] = "none" if all(run["zero_shot"] for run in runs) else "real"
            for name in (*self.metrics, "seconds"):
                values = [run[name] for run in runs if isinstance(run.get(name), int | float)]
                if values:
                    row[name] = fmean(values)
                    if len(values) > 1:
                        row[f"{name} sd"] = stdev(values)
            rows.append(row)
        return rows

    def table(self) -> Table:
        """With mean ± deviation in a cell, four digits."""
        return Table([{key: cell(row, key) for key in row if not key.endswith(" sd")} for row in self.rows()])

    def to_markdown(self) -> str:
        return self.table().to_markdown()

    def to_csv(self, path: str | Path) -> Path:
        """The table with all digits, deviations in columns of their own."""
        return Table(self.rows()).to_csv(path)

    def write(self, folder: str | Path) -> None:
        """table.md, table.csv and, where something was scored and matplotlib is there, table.png."""
        folder = Path(folder)
        write_text(folder / "table.md", self.to_markdown() + "\n")
        self.to_csv(folder / "table.csv")
        if self.metrics and find_spec("matplotlib"):
            self.plot(folder / "table.png")

    def plot(self, path: str | Path, metrics: Sequence[str] | None = None) -> Path:
        """A PNG: a panel for each metric (by default all) against the configurations, a line for each method, whiskers
        of one deviation, the teacher dashed.

        Raises ValueError where matplotlib is missing, nothing was scored, or a metric was not.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise ValueError("a figure needs matplotlib: pip install 'zsaq[plot]', or take to_markdown()") from None
        if not self.metrics:
            raise ValueError("nothing was scored, so there is nothing to draw: give compare a score")
        shown = self.metrics if metrics is None else list(metrics)
        if unknown := [metric for metric in shown if metric not in self.metrics]:
            raise ValueError(f"{', '.join(unknown)} was not scored; there are {', '.join(self.metrics)}")
        width = 1.2 + 0.8 * len({run["config"] for run in self.runs})
        figure = Figure(figsize=(width * len(shown) + 1.5, 4.2), layout="constrained")
        axes = list(figure.subplots(1, len(shown), squeeze=False)[0])
        for axis, metric in zip(axes, shown, strict=True):
            self._draw(axis, metric)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
        figure.savefig(path, dpi=120)
        return Path(path)

    def _draw(self, axis: Any, metric: str) -> None:
        """One metric's panel."""
        groups = self.groups()
        configs = [config for config in dict.fromkeys(config for config, _ in groups) if config]
        for method in dict.fromkeys(method for config, method in groups if config):
            runs = {config: groups.get((config, method), []) for config in configs}
            points = {config: [run[metric] for run in each if metric in run] for config, each in runs.items()}
            drawn = {configs.index(config): values for config, values in points.items() if values}
            means, spread = map(fmean, drawn.values()), [stdev(v) if len(v) > 1 else 0.0 for v in drawn.values()]
            axis.errorbar(list(drawn), list(means), yerr=spread, marker="o", capsize=3, linewidth=1, label=method)
        for run in self.runs:
            if run["method"] == "teacher" and metric in run:
                axis.axhline(run[metric], color="gray", linewidth=1, linestyle="--", label="teacher")
        axis.set_xticks(range(len(configs)), configs)
        axis.set_title(metric, fontsize=10)


def is_run(run: Any) -> bool:
    """Whether JSON that nobody has checked is a line of runs.jsonl: all of its keys, of their kinds, and scores."""
    if not isinstance(run, dict) or not {*KEYS, "of"} <= set(run):
        return False
    numbers = [value for key, value in run.items() if key not in (*KEYS[:4], "of")]
    return (
        all(isinstance(run[key], kind) for key, kind in KINDS.items())
        and type(run["seed"]) is int
        and not any(isinstance(value, bool) or not isinstance(value, int | float) for value in numbers)
        and all(abs(value) < HUGE for value in numbers)
    )


def cell(row: Mapping[str, Any], name: str) -> str:
    """A cell: mean ± deviation."""
    value = row[name]
    text = digits(value) if isinstance(value, float) else str(value)
    return text + (f" ± {digits(row[f'{name} sd'])}" if f"{name} sd" in row else "")
