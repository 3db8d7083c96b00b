"""The sections of the page on a folder, as data: what they show is told here, how it looks in templates/page.html."""

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from zsaq.io.checksums import MANIFEST, check_manifest
from zsaq.quant.grid import describe
from zsaq.quant.plan import Plan
from zsaq.report.curves import Curve, number, read_curves
from zsaq.report.speed import generations, timings
from zsaq.report.table import DEEP, Table, digits, one_line
from zsaq.run import Results

PNG: Final = b"\x89PNG\r\n\x1a\n"
PICTURES: Final = 24
PICTURE: Final = 2**22  # bytes of a picture that is embedded
FEW: Final = 12  # entries that are shown at once
UNREAD: Final = "cannot be shown"


@final
@dataclass(frozen=True)
class Tree:
    """Facts, and others below them under titles of their own."""

    title: str
    facts: Table
    parts: Sequence["Tree"] = ()
    short: bool = False


@final
@dataclass(frozen=True)
class Bars:
    """A bar for each model, from 0 to the largest value."""

    title: str
    values: Mapping[str, float]

    def lines(self) -> list[tuple[str, str, str]]:
        """Names, percents of the largest, values."""
        most = max(map(abs, self.values.values())) or 1.0
        return [(name, f"{100 * max(value, 0.0) / most:.1f}", digits(value)) for name, value in self.values.items()]


@final
@dataclass(frozen=True)
class Section:
    """One section, shown in this order; `details` are folded, `tree` is not."""

    title: str
    badge: str = ""
    texts: Sequence[str] = ()
    tables: Sequence[Table] = ()
    bars: Bars | None = None
    curves: Sequence[Curve] = ()
    pictures: Sequence[tuple[str, str]] = ()
    details: Sequence[Tree] = ()
    tree: Tree | None = None

    @property
    def filled(self) -> bool:
        """Whether there is anything to show."""
        shown = (self.badge, self.texts, self.tables, self.curves, self.pictures, self.details, self.tree)
        return any(shown)


def scores(results: Results | str | None) -> Section:
    """A row for each model, and a bar for the first metric."""
    if not isinstance(results, Results):
        return Section("Results", UNREAD, [results]) if results else Section("Results")
    data = results.data
    where = ", ".join(filter(None, (data.name, data.split))) if data is not None else ""
    rows = [
        {
            "model": row.name,
            **{m: row.scores.get(m) for m in results.metrics},
            "bytes": row.bytes,
            "seconds": row.seconds,
        }
        for row in results.rows
    ]
    text = f"On {where}." if where else "Not evaluated on any data that is named here."
    first = results.metrics[0] if results.metrics else ""
    values = {row.name: row.scores[first] for row in results.rows if first in row.scores}
    return Section("Results", texts=[text], tables=[Table(rows)], bars=Bars(first, values) if len(values) > 1 else None)


def model(config: Mapping[str, Any], results: Results | str | None) -> Section:
    facts: dict[str, Any] = {"architecture": config.get("architectures")}
    if isinstance(results, Results):
        base = results.base
        facts |= {
            "base model": base.name if base else results.model,
            "its revision": base and base.revision,
            "its weights' SHA-256": base and base.sha256,
            "its licence": base and dict(base.license),
            "method": results.method,
            "inputs": results.inputs,
            "words about the model that were used": results.knowledge,
            "preset": results.preset,
            "seed": results.seed,
            "budget": results.budget,
            "machine": results.machine,
            "versions": results.versions,
        }
    return Section("Model", tables=[Table.of_facts(facts)])


def quantization(config: Mapping[str, Any], results: Results | str | None) -> Section:
    """Grids, and how many modules are quantized how; every module on demand."""
    raw = config.get("quantization_config")
    try:
        if not isinstance(raw, dict) or raw.get("quant_method") != "zsaq":
            raise ValueError("config.json holds no quantization_config of zsaq")
        plan = Plan.from_dict({k: v for k, v in raw.items() if k not in ("quant_method", "format_version")})
    except ValueError as error:
        return Section("Quantization", UNREAD, [str(error)])
    how = {name: f"reads the codes of {plan.tied[name]}" if name in plan.tied else "quantized" for name in plan.chosen}
    how |= {name: f"left alone: {why}" for name, why in plan.left.items()}
    if isinstance(results, Results) and set(results.coverage) == set(how):  # it knows kinds of modules, the plan not
        how = dict(results.coverage)
    whole = plan.config
    grids = {
        "weights": whole.weight, "inputs": whole.input, "ReLU": whole.activation, "attention": whole.attention,
        "token table": whole.embedding, "head": whole.head,
    }  # fmt: skip
    facts = {what: describe(grid) for what, grid in grids.items() if grid is not None}
    if whole.rules:
        facts["exceptions"] = f"{len(whole.rules)} rules by module"
    counts = Table([{"modules": count, "how": words} for words, count in Counter(how.values()).most_common()])
    every = Table([{"module": name, "how": words} for name, words in how.items()])
    tables = [Table.of_facts(facts), counts]
    return Section("Quantization", tables=tables, details=[Tree(f"all {len(how)} modules", every)])


def everything(title: str, facts: Mapping[str, Any] | str | None) -> Section:
    """Any JSON, all of it."""
    if not isinstance(facts, Mapping):
        return Section(title, UNREAD, [facts]) if facts else Section(title)
    return Section(title, tree=tree_of(title, facts))


def speed(bench: Mapping[str, Any] | str | None) -> Section:
    """The table, and where the student is slower than others; the whole on demand."""
    if not isinstance(bench, Mapping):
        return everything("Speed", bench)
    texts = ["Best of all rounds; in brackets how many times faster than torch in floats."]
    for name, head in (("slower", "Slower than others at"), ("left_out", "Left out")):
        if bench.get(name):
            texts.append(f"{head}: {one_line(bench[name])}.")
    details = [tree_of("all of the measurement", bench)]
    if threads := number(bench.get("threads")):
        texts[0] += f" Threads: {threads:g}."
    return Section("Speed", texts=texts, tables=[timings(bench), *generations(bench)], details=details)


def curves(root: Path) -> Section:
    """A small drawing for each number that the steps logged."""
    drawn, problems = [], []
    for file in sorted(root.glob("*.jsonl")):
        try:
            drawn += read_curves(file)
        except ValueError as error:
            problems.append(str(error))
    return Section("Curves", texts=problems, curves=drawn)


def pictures(root: Path) -> Section:
    files = sorted(root.rglob("*.png"))
    fit = [f for f in files if f.is_file() and not f.is_symlink() and f.stat().st_size <= PICTURE][:PICTURES]
    shown, texts = [], []
    for file in fit:
        name, data = file.relative_to(root).as_posix(), file.read_bytes()
        if data.startswith(PNG):
            shown.append((name, base64.b64encode(data).decode("ascii")))
        else:
            texts.append(f"{name} is no PNG and is not shown")
    if len(files) > len(fit):
        texts.append(f"{len(files) - len(fit)} more are too large or too many to be shown here.")
    return Section("Pictures", texts=texts, pictures=shown)


def files(root: Path, exports: Mapping[str, Mapping[str, Any] | str]) -> Section:
    """Exports; sizes and hashes of the manifest, checked now."""
    usable = [name for name, facts in exports.items() if not isinstance(facts, str)]
    texts = [f"Exports: {', '.join(usable)}."] if usable else []
    texts += [f"{name} is not used: {problem}" for name, problem in exports.items() if isinstance(problem, str)]
    if not (root / MANIFEST).is_file():
        texts.append("There is no manifest, so nobody can tell whether these files are as they were saved.")
        return Section("Files", texts=texts)
    try:
        known = check_manifest(root)["files"]
    except ValueError as error:
        return Section("Files", "refused", [*texts, str(error)])
    rows = [{"file": name, "bytes": fact["size"], "sha256": fact["sha256"]} for name, fact in known.items()]
    return Section("Files", "every file is what the manifest says", texts, [Table(rows)])


def tree_of(title: str, value: Mapping[str, Any], depth: int = 0) -> Tree:
    """Any JSON: facts in two columns, lists of objects as tables."""
    parts, facts = [], {}
    for name, part in value.items():
        if isinstance(part, list) and part and all(isinstance(row, dict) for row in part):
            parts.append(Tree(f"{name} ({len(part)})", Table(part), short=len(part) <= FEW))
        elif isinstance(part, dict) and not simple(part) and depth < DEEP:
            parts.append(tree_of(name, part, depth + 1))
        else:
            facts[name] = one_line(part)
    return Tree(title, Table.of_facts(facts), parts, len(value) <= FEW)


def simple(value: Mapping[str, Any]) -> bool:
    """Whether it fits into a line: a few numbers and texts."""
    return len(value) <= 4 and not any(isinstance(part, dict | list) for part in value.values())
