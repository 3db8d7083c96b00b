"""The tables of what `zsaq.deploy.bench` measured, from JSON that nobody has checked."""

from collections.abc import Mapping
from typing import Any

from zsaq.report.curves import number
from zsaq.report.table import Table, one_line


def timings(bench: Mapping[str, Any]) -> Table:
    """A row for each runtime of `zsaq.deploy.bench`: sizes, and for each shape the best time and the speed-up."""
    rows = bench.get("rows")
    return Table([timing(row) for row in (rows if isinstance(rows, list) else ()) if isinstance(row, dict)])


def generations(bench: Mapping[str, Any]) -> list[Table]:
    """A row for each runtime that wrote text: the first token, and the rate after it; no table where none did."""
    part = bench.get("generation")
    rows = part.get("rows") if isinstance(part, dict) else None
    if not isinstance(rows, list):
        return []
    return [Table([cells(row) | written(row) for row in rows if isinstance(row, dict)])]


def written(row: Mapping[str, Any]) -> dict[str, str]:
    """What a row says of text that was written."""
    first, rate = (number(best_of(row.get(name))) for name in ("first_ms", "tokens_a_second"))
    gain = number(row.get("faster"))
    return {
        "first token": "-" if first is None else f"{first:.1f} ms",
        "tokens a second": ("-" if rate is None else f"{rate:.1f}") + ("" if gain is None else f" ({gain:.1f})"),
    }


def best_of(times: Any) -> Any:
    return times.get("best") if isinstance(times, dict) else None


def timing(row: Mapping[str, Any]) -> dict[str, str]:
    """One row, of JSON that nobody has checked."""
    shown = cells(row)
    by_shape, faster = (part if isinstance(part := row.get(key), dict) else {} for key in ("ms", "faster"))
    for shape, times in by_shape.items():
        best, gain = number(best_of(times)), number(faster.get(shape))
        shown[str(shape)] = ("-" if best is None else f"{best:.2f} ms") + ("" if gain is None else f" ({gain:.1f})")
    return shown


def cells(row: Mapping[str, Any]) -> dict[str, str]:
    """The runtime's name and sizes."""
    shown = {"runtime": one_line(row.get("runtime"))}
    for name, head in (("bytes", "on disk, MiB"), ("memory", "memory, MiB")):
        if (size := number(row.get(name))) is not None:
            shown[head] = f"{size / 2**20:.1f}"
    return shown
