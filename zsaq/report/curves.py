"""What a run logged step by step, as curves: read once, drawn as PNG or inside of a page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from zsaq.atomic import atomic_file
from zsaq.form import parsed

LARGEST: Final = 2**24  # bytes of a file that is read
HUGE: Final = 1e300  # beyond it integers have no float
NO_CURVE: Final = {"step", "seconds", "lr"}
COLUMNS: Final = 3  # panels side by side


@final
@dataclass(frozen=True)
class Curve:
    """One number of one stage of a run, over its steps; two points or more."""

    stage: str
    name: str
    steps: Sequence[float]
    values: Sequence[float]

    def __str__(self) -> str:
        """Both ends and the extremes, in words."""
        least, most = min(self.values), max(self.values)
        ends = f"{self.values[0]:.3g} to {self.values[-1]:.3g}"
        return f"{self.stage}: {self.name}: {ends}, least {least:.3g}, most {most:.3g}"

    def path(self, width: float, height: float) -> str:
        """Points "x,y x,y ..." of a line that fills a box of this size, y downwards."""

        def scaled(values: Sequence[float], size: float) -> list[float]:
            least, range_ = min(values), max(values) - min(values) or 1.0
            return [size * (value - least) / range_ for value in values]

        pairs = zip(scaled(self.steps, width), scaled(self.values, height), strict=True)
        return " ".join(f"{x:.1f},{height - y:.1f}" for x, y in pairs)


def number(value: Any) -> float | None:
    """A finite number that JSON holds there, None for anything else."""
    fits = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < HUGE
    return float(value) if fits else None


def read_curves(file: Path) -> list[Curve]:
    """The curves of a file of JSON lines, each with its step. Raises ValueError for what cannot be read."""
    try:
        if file.stat().st_size > LARGEST:
            raise ValueError(f"it has more than {LARGEST:,} bytes")
        lines = [parsed(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise ValueError(f"{file.name} cannot be read: {error}") from error
    points: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        if isinstance(line, dict) and (step := number(line.get("step"))) is not None:
            for name, value in line.items():
                if name not in NO_CURVE and (known := number(value)) is not None:
                    points.setdefault(name, []).append((step, known))
    return [Curve(file.stem, name, *zip(*p, strict=True)) for name, p in points.items() if len(p) > 1]


def draw_curves(folder: Path) -> Path:
    """`curves.png` in `folder`: one panel for each number that *.jsonl tells, one line for each stage; its path.

    Needs matplotlib (the extra "plot"). Raises ValueError where there is nothing to draw.
    """
    from matplotlib.figure import Figure

    curves = [curve for file in sorted(folder.glob("*.jsonl")) for curve in read_curves(file)]
    names = list(dict.fromkeys(curve.name for curve in curves))
    if not names:
        raise ValueError(f"{folder} holds no *.jsonl with numbers to draw: give the folder of a run")
    rows = -(-len(names) // COLUMNS)
    figure = Figure(figsize=(4 * COLUMNS, 2.6 * rows), layout="constrained")
    panels = list(figure.subplots(rows, COLUMNS, squeeze=False).flat)
    for panel, name in zip(panels, names, strict=False):
        for curve in (curve for curve in curves if curve.name == name):
            panel.plot(curve.steps, curve.values, label=curve.stage, linewidth=1)
        panel.set_title(name, fontsize=9)
        panel.set_xlabel("step", fontsize=8)
        panel.legend(fontsize=7)
    for panel in panels[len(names) :]:
        panel.remove()
    with atomic_file(folder / "curves.png") as partial:
        figure.savefig(partial, dpi=110)
    return folder / "curves.png"
