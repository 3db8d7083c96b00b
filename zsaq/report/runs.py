"""The file of a comparison's kept runs, after a run was killed too."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zsaq.form import parsed
from zsaq.report.comparison import RUNS, Comparison


def mend(folder: str | Path, of: Mapping[str, Any], own: Mapping[str, Any], write: bool) -> str | None:
    """Where a killed run left an unfinished last line in runs.jsonl: takes it out if `write`, and says so. `own`: what
    runs of a method belong to beside `of`, by its name.

    Raises ValueError for any other line that is no JSON, and for runs of something else, with the line's number.
    """
    path = Path(folder) / RUNS
    data = path.read_bytes() if path.is_file() else b""
    lines = data.splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            run = parsed(line)
        except ValueError as error:
            if number < len(lines):
                raise ValueError(
                    f"{path}, line {number}, is no JSON ({error}): take it out, or give a new folder"
                ) from error
            if write:
                with path.open("r+b") as file:
                    file.truncate(len(data) - len(line))
            return f"{path}, line {number}, was not finished: it is dropped, and its run is made again"
        theirs: Any = run.get("of") if isinstance(run, dict) else None
        ours = {**of, **own.get(str(run["method"]), {})} if isinstance(theirs, dict) and "method" in run else {}
        if other := [key for key in ours if theirs.get(key) != ours[key]]:
            listed = "; ".join(f"{key}: {theirs.get(key)!r:.80}, not {ours[key]!r:.80}" for key in other)
            raise ValueError(f"{path}, line {number}, holds runs of something else ({listed}): give a new folder")
    if write and data and not data.endswith(b"\n"):  # whole but for its end
        with path.open("ab") as file:
            file.write(b"\n")
    return None


def once(runs: Comparison) -> Comparison:
    """The first run of each configuration, method and seed: two processes may have made the same."""
    first: dict[Any, Mapping[str, Any]] = {}
    for run in runs.runs:
        first.setdefault((run["config"], run["method"], "" if run["method"] == "teacher" else run["seed"]), run)
    return Comparison(tuple(first.values()))
