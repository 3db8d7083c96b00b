"""Loss curves from a run's JSON lines, as PNG."""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

SKIPPED = {"step", "seconds", "lr"}


def draw(folder: Path) -> Path:
    """`curves.png` in `folder`: one panel for each number that `*.jsonl` tells, one line for each stage."""
    stages = {
        path.stem: [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(folder.glob("*.jsonl"))
    }
    names = list(
        dict.fromkeys(key for lines in stages.values() for line in lines for key in line if key not in SKIPPED)
    )
    if not names:
        raise ValueError(f"{folder} holds no *.jsonl with numbers to draw; run a recipe first")
    columns = 3
    figure, axes = plt.subplots(
        -(-len(names) // columns), columns, figsize=(12, 2.6 * -(-len(names) // columns)), squeeze=False
    )
    for axis, name in zip(axes.flat, names, strict=False):
        for stage, lines in stages.items():
            points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
            if points:
                axis.plot(*zip(*points, strict=True), label=stage, linewidth=1)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.legend(fontsize=7)
    for axis in list(axes.flat)[len(names) :]:
        axis.remove()
    figure.tight_layout()
    figure.savefig(folder / "curves.png", dpi=110)
    plt.close(figure)
    return folder / "curves.png"
