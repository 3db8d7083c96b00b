"""One self-contained HTML page on a folder: what lies in it, what is missing, and which command makes it.

Everything in the folder was written by somebody: it is read with a limit, checked for its form, and escaped. The
student's weights are not loaded; that its files are what the manifest says is checked here and now, and so is that the
rest belongs to them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from zsaq.atomic import check_file, write_text
from zsaq.io.added import BENCH, EXPORT, MODELS, PARITY, read_added, read_parity
from zsaq.io.checksums import MANIFEST, fingerprint
from zsaq.io.record import read_results
from zsaq.io.saving import weight_bytes
from zsaq.report import sections
from zsaq.report.html import render
from zsaq.report.table import Table, digits
from zsaq.run import RESULTS, Results

MISSING: Final = {  # what may lie in the folder -> what makes it
    RESULTS: "zsaq quantize MODEL --output_dir DIR",
    "scores": "zsaq evaluate DIR --task TASK --teacher MODEL --record",
    "manifest": "zsaq quantize, or zsaq.save",
    "parity report": "zsaq verify DIR",
    "bench": "zsaq bench DIR --record",
    "exports": "zsaq export DIR --to onnx",
}


@final
@dataclass(frozen=True)
class Contents:
    """What lies in a folder, or why it cannot be read: then a text stands in its place. None is what is not there."""

    root: Path
    config: dict[str, Any]
    results: Results | str | None
    parity: dict[str, Any] | str | None
    bench: dict[str, Any] | str | None
    exports: dict[str, dict[str, Any] | str]

    @classmethod
    def of(cls, root: Path) -> "Contents":
        """Raises ValueError for a folder without a readable config.json."""
        try:
            config = read_added(root / "config.json", None)
        except ValueError as error:
            raise ValueError(f"{root} has no readable config.json: give the folder of a saved student") from error
        model = fingerprint(root)
        places = sorted({path.parent for kind in MODELS for path in root.glob(f"*/{kind}")})
        return cls(
            root,
            config,
            attempt(read_results, root, model) if (root / RESULTS).exists() else None,
            attempt(read_parity, root, model) if (root / PARITY).exists() else None,
            attempt(read_added, root / BENCH, model) if (root / BENCH).exists() else None,
            {place.name: attempt(read_added, place / EXPORT, model) for place in places},
        )

    def missing(self) -> dict[str, str]:
        """What is not there, or is not of this model, with the command that makes it."""
        there = {
            RESULTS: isinstance(self.results, Results),
            "scores": isinstance(self.results, Results) and bool(self.results.metrics),
            "manifest": (self.root / MANIFEST).is_file(),
            "parity report": isinstance(self.parity, dict),
            "bench": isinstance(self.bench, dict),
            "exports": any(isinstance(facts, dict) for facts in self.exports.values()),
        }
        return {name: command.replace("DIR", str(self.root)) for name, command in MISSING.items() if not there[name]}

    def summary(self) -> list[tuple[str, str]]:
        """What one wants to know first."""
        size = weight_bytes(self.root)
        facts = [("weights on disk", f"{size / 2**20:.1f} MiB")]
        if isinstance(self.results, Results):
            student, teacher = self.results.student, self.results.teacher
            if size and teacher is not None and teacher.bytes:
                facts.append(("smaller than the teacher", f"{teacher.bytes / size:.1f} times"))
            for metric, score in student.scores.items():
                facts.append((metric, digits(score)))
                if teacher is not None and metric in teacher.scores and metric != "agreement":
                    facts.append((f"{metric} of the teacher", digits(teacher.scores[metric])))
            facts.append(("data seen", "none" if self.results.zero_shot else "real data"))
        if isinstance(self.parity, dict) and isinstance(agrees := self.parity.get("agrees"), bool):
            facts.append(("runtimes", "agree" if agrees else "DISAGREE"))
        return facts


def attempt(read: Any, *arguments: Any) -> Any:
    """What `read` answers; where it refuses, its reason."""
    try:
        return read(*arguments)
    except ValueError as error:
        return str(error)


def report(folder: str | Path, target: Path | None = None) -> tuple[Path, dict[str, str]]:
    """Write the page (default: report.html in `folder`); its path, and what is missing with the command for it.

    Raises ValueError for a folder without the config.json of a saved student, where the page cannot be written, and
    where it would lie in the folder without a page's ending, which may be a part of the student.
    """
    root = Path(folder)
    page_file = check_file(target or root / "report.html")
    if page_file.suffix != ".html" and page_file.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{page_file} may be a part of the student: end its name in .html, or write it elsewhere")
    contents = Contents.of(root)
    missing = contents.missing()
    table = Table([{"what": name, "what makes it": command} for name, command in missing.items()])
    parts = [
        sections.scores(contents.results),
        sections.model(contents.config, contents.results),
        sections.quantization(contents.config, contents.results),
        sections.everything("Parity", contents.parity),
        sections.speed(contents.bench),
        sections.curves(root),
        sections.pictures(root),
        sections.files(root, contents.exports),
        sections.Section("What is missing", tables=[table] if missing else []),
    ]
    page = render(
        "page.html",
        title=root.absolute().name,
        summary=contents.summary(),
        missing=table,
        sections=[part for part in parts if part.filled],
    )
    return write_text(page_file, page), missing
