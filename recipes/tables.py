"""Tables of finished runs, for language and vision: mean and spread over seeds, as Markdown, CSV and PNG."""

import csv
import json
from pathlib import Path
from statistics import mean, stdev

COLUMNS = ("score", "agreement", "kl", "seconds")


def grouped(folder: Path) -> dict[tuple[str, str], list[dict]]:
    """The lines of `runs.jsonl` by bits and method, in the order of their first appearance."""
    runs = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    keys = dict.fromkeys((run["bits"], run["method"]) for run in runs)
    return {key: [run for run in runs if (run["bits"], run["method"]) == key] for key in keys}


def table(folder: Path) -> None:
    """`table.md` and `table.csv`: a row for each bits and method, mean and standard deviation over the seeds."""
    rows = []
    for (bits, method), same in grouped(folder).items():
        row = {"bits": bits, "method": method, "seeds": len(same)}
        for column in COLUMNS:
            values = [run[column] for run in same if column in run]
            if values:
                row[column] = f"{mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")
        rows.append(row)
    names = ["bits", "method", "seeds", *COLUMNS]
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(str(row.get(name, "")) for name in names) + " |" for row in rows]
    (folder / "table.md").write_text("\n".join(lines) + "\n")


def bars(folder: Path) -> None:
    """`table.png`: the score of every method, a panel for each bits, whiskers of one standard deviation."""
    from matplotlib.figure import Figure

    found = grouped(folder)
    panels = list(dict.fromkeys(bits for bits, _ in found))
    figure = Figure(figsize=(4.5 * len(panels), 0.8 + 0.25 * len(found)), layout="constrained")
    for axis, bits in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        rows = {method: [run["score"] for run in runs] for (b, method), runs in found.items() if b == bits}
        spread = [stdev(values) if len(values) > 1 else 0.0 for values in rows.values()]
        axis.barh(list(rows), [mean(values) for values in rows.values()], xerr=spread, height=0.7)
        axis.invert_yaxis()
        axis.set_title(bits, fontsize=9)
        axis.tick_params(labelsize=7)
    figure.savefig(folder / "table.png", dpi=120)
