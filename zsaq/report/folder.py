"""One self-contained HTML page on a folder: what lies in it, what is missing, and which command makes it.

Everything in the folder was written by somebody: it is read with a limit, checked for its form, and escaped. The
student's weights are not loaded; that its files are what the manifest says is checked here and now.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from zsaq.io.checksums import MANIFEST, check
from zsaq.quant.model import describe
from zsaq.quant.plan import Plan
from zsaq.report.html import badge, bars, curve, details, figure, page, paragraph, section, shown, spelled, table, tiles

LARGEST: Final = 2**24  # bytes of a JSON file that is read
PICTURES: Final = 24
PICTURE: Final = 2**22  # bytes of a picture that is embedded
HUGE: Final = 1e300  # beyond it integers have no float
STEPS: Final = {"step", "seconds", "lr"}
MISSING: Final = {  # what may lie in the folder -> what makes it
    "results.json": "zsaq quantize MODEL --output_dir DIR",
    "scores": "zsaq evaluate DIR --task TASK --teacher MODEL --record",
    "manifest": "zsaq quantize, or zsaq.manifest.seal(folder)",
    "certificate": "zsaq verify DIR",
    "bench": "zsaq bench DIR --record",
    "exports": "zsaq export DIR --to onnx",
}


def report(folder: str | Path, target: Path | None = None) -> tuple[Path, dict[str, str]]:
    """Write the page (default: report.html in `folder`); its path, and what is missing with the command for it.

    Raises ValueError for a folder without the config.json of a saved student.
    """
    root = Path(folder)
    config = read(root / "config.json")
    if not isinstance(config, dict):
        raise ValueError(f"{root} has no readable config.json: give the folder of a saved student")
    results = read(root / "results.json")
    results = results if isinstance(results, dict) else {}
    rows = [row for row in listed(results.get("rows")) if isinstance(row, dict)]
    certificate, bench = read(root / "certificate.json"), read(root / "bench.json")
    exports = [name for name in ("onnx", "compressed-tensors") if (root / name).is_dir()]
    found = {
        "results.json": bool(results),
        "scores": any(isinstance(row.get(key), float) for row in rows for key in strings(results.get("metrics"))),
        "manifest": (root / MANIFEST).is_file(),
        "certificate": certificate is not None,
        "bench": bench is not None,
        "exports": bool(exports),
    }
    missing = {name: command.replace("DIR", str(root)) for name, command in MISSING.items() if not found[name]}
    parts = [
        tiles(summary(root, config, results, rows, certificate)),
        paragraph(f"Missing: {', '.join(missing)}; the end of this page tells what makes it.") if missing else "",
        section("Results", scores(results, rows)),
        section("Model", table(model(config, results))),
        section("Quantization", quantization(config, results.get("coverage"))),
        section("Certificate", shown(certificate) if certificate is not None else ""),
        section("Speed", speed(bench) if bench is not None else ""),
        section("Curves", curves(root)),
        section("Pictures", pictures(root)),
        section("Files", files(root, exports)),
        section("What is missing", table([[f, c] for f, c in missing.items()], ["what", "what makes it"])),
    ]
    path = target or root / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(root.absolute().name, parts), encoding="utf-8", errors="replace")
    return path, missing


def read(path: Path) -> Any:
    """JSON that nobody has checked; None where there is no such file, a text where it cannot be read."""
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it has {path.stat().st_size:,} bytes, more than {LARGEST:,} are not read")
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        return f"{path.name} cannot be read: {error}"


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def strings(value: Any) -> list[str]:
    return [v for v in value.values() if isinstance(v, str)] if isinstance(value, dict) else []


def number(value: Any, form: str = ".4f") -> str | None:
    """A finite number as text, None for anything else."""
    fits = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < HUGE
    return format(value, form) if fits else None


def summary(
    root: Path, config: Mapping[str, Any], results: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], told: Any
) -> list[tuple[str, str]]:
    """What one wants to know first."""
    size = sum(path.stat().st_size for path in root.glob("*.safetensors"))
    by_name = {str(row.get("name")): row for row in rows}
    own, teacher = by_name.get(str(results.get("method")), {}), by_name.get("teacher", {})
    first: list[tuple[str, Any]] = [("weights on disk", f"{size / 2**20:.1f} MiB")]
    before = teacher.get("bytes")
    if size and isinstance(before, int | float) and number(before):
        first.append(("smaller than the teacher", f"{before / size:.1f} times"))
    metric = next((key for key in strings(results.get("metrics")) if number(own.get(key))), None)
    if metric is not None:
        first.append((metric, number(own.get(metric))))
        first.append((f"{metric} of the teacher", number(teacher.get(metric))))
    first.append(("agreement with the teacher", number(own.get("agreement"))))
    if isinstance(told, dict) and isinstance(told.get("agrees"), bool):
        first.append(("certificate", "agrees" if told["agrees"] else "DISAGREES"))
    if isinstance(results.get("zero_shot"), bool):
        first.append(("data seen", "none" if results["zero_shot"] else "real data"))
    return [(name, value) for name, value in first if value is not None]


def model(config: Mapping[str, Any], results: Mapping[str, Any]) -> list[list[Any]]:
    told = results.get("base")
    base = told if isinstance(told, dict) else {}
    facts = {
        "architecture": config.get("architectures"),
        "base model": base.get("name") or results.get("job"),
        "its revision": base.get("revision"),
        "its weights' SHA-256": base.get("sha256"),
        "its licence": base.get("license"),
        "method": results.get("method"),
        "preset": results.get("preset"),
        "seed": results.get("seed"),
        "budget": results.get("budget"),
        "versions": results.get("versions"),
    }
    return [[name, spelled(value)] for name, value in facts.items() if value not in (None, {}, [])]


def scores(results: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """A row for each model, and a bar for the first metric."""
    keys = list(dict.fromkeys(key for row in rows for key in row if not str(key).startswith("teacher_")))
    keys = [key for key in keys if key != "score" or not results.get("metrics")]  # the metrics' mean, for programs
    if not rows:
        return ""
    data = results.get("data")
    where = [spelled(data[key]) for key in ("name", "split") if data.get(key)] if isinstance(data, dict) else []
    told = paragraph(f"On {', '.join(where)}." if where else "Not evaluated on any data that is named here.")
    metric = next((key for key in strings(results.get("metrics")) if any(number(r.get(key)) for r in rows)), None)
    lines = [(str(r.get("name")), float(r[metric])) for r in rows if number(r.get(metric))] if metric else []
    return told + table([[spelled(row.get(key)) for key in keys] for row in rows], keys) + bars(metric or "", lines)


def quantization(config: Mapping[str, Any], coverage: Any) -> str:
    """Grids, and how many modules are quantized how; every module on demand."""
    raw = config.get("quantization_config")
    try:
        if not isinstance(raw, dict) or raw.get("quant_method") != "zsaq":
            raise ValueError("config.json holds no quantization_config of zsaq")
        plan = Plan.from_dict({k: v for k, v in raw.items() if k not in ("quant_method", "format_version")})
    except ValueError as error:
        return badge("cannot be read") + paragraph(str(error))
    told = {name: f"reads the codes of {plan.tied[name]}" if name in plan.tied else "quantized" for name in plan.chosen}
    told |= {name: f"left alone: {why}" for name, why in plan.left.items()}
    if isinstance(coverage, dict) and set(coverage) == set(told):  # it knows kinds of modules, the plan does not
        told = {name: spelled(how) for name, how in coverage.items()}
    own = plan.config
    grids = {
        "weights": own.weight,
        "inputs": own.input,
        "ReLU": own.activation,
        "token table": own.embedding,
    }
    text = table([[what, describe(grid)] for what, grid in grids.items() if grid is not None] + exceptions(plan))
    counts = [[f"{n}", how] for how, n in Counter(told.values()).most_common()]
    every = table([[name, how] for name, how in told.items()], ["module", "how"])
    return text + table(counts, ["modules", "how"]) + details(f"all {len(told)} modules", every)


def exceptions(plan: Plan) -> list[list[str]]:
    return [["exceptions", f"{len(plan.config.rules)} rules by module"]] if plan.config.rules else []


def timings(bench: Any) -> list[dict[str, str]]:
    """A row for each runtime of `zsaq.bench`: sizes, and for each shape the best time and the speed-up."""
    made = []
    for row in listed(bench.get("rows") if isinstance(bench, dict) else None):
        if not isinstance(row, dict):
            continue
        line = {"runtime": spelled(row.get("runtime"))}
        for name, head in (("bytes", "on disk, MiB"), ("memory", "memory, MiB")):
            if isinstance(size := row.get(name), int):
                line[head] = f"{size / 2**20:.1f}"
        faster = row["faster"] if isinstance(row.get("faster"), dict) else {}
        for shape, times in row["ms"].items() if isinstance(row.get("ms"), dict) else ():
            best = number(times.get("best") if isinstance(times, dict) else None, ".2f")
            gain = number(faster.get(shape), ".1f")
            line[str(shape)] = (f"{best} ms" if best else "-") + (f" ({gain})" if gain else "")
        made.append(line)
    return made


def speed(bench: Any) -> str:
    """The table, and where the student is slower than others; the whole on demand."""
    lines = timings(bench)
    keys = list(dict.fromkeys(key for line in lines for key in line))
    text = paragraph("Best of all rounds; in brackets how many times faster than torch in floats.") if lines else ""
    text += table([[line.get(key, "-") for key in keys] for line in lines], keys)
    told = bench if isinstance(bench, dict) else {}
    for name, head in (("slower", "Slower than others at"), ("left_out", "Left out")):
        if told.get(name):
            text += paragraph(f"{head}: {spelled(told[name])}.")
    return text + details("all of the measurement", shown(bench))


def curves(root: Path) -> str:
    """A small drawing for each number that the steps told."""
    drawn = []
    for path in sorted(root.glob("*.jsonl")):
        try:
            if path.stat().st_size > LARGEST:
                raise ValueError("too large")
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError, RecursionError) as error:
            drawn.append(paragraph(f"{path.name} cannot be read: {error}"))
            continue
        lines = [line for line in lines if isinstance(line, dict) and number(line.get("step"))]
        for name in dict.fromkeys(key for line in lines for key in line if key not in STEPS):
            points = [(float(line["step"]), float(line[name])) for line in lines if number(line.get(name))]
            if len(points) > 1:
                drawn.append(curve(f"{path.stem}: {name}", points))
    return f'<div class="grid">{"".join(drawn)}</div>' if drawn else ""


def pictures(root: Path) -> str:
    found = sorted(root.rglob("*.png"))
    fit = [p for p in found if p.is_file() and not p.is_symlink() and p.stat().st_size <= PICTURE][:PICTURES]
    drawn = [figure(path.relative_to(root).as_posix(), data) for path in fit if (data := path.read_bytes())]
    rest = f"{len(found) - len(fit)} more are too large or too many to be shown here." if len(found) > len(fit) else ""
    return (f'<div class="wide">{"".join(drawn)}</div>' if drawn else "") + (paragraph(rest) if rest else "")


def files(root: Path, exports: Sequence[str]) -> str:
    """Sizes and hashes of the manifest, checked now."""
    told = paragraph(f"Exports: {', '.join(exports)}.") if exports else ""
    if not (root / MANIFEST).is_file():
        return told + paragraph("There is no manifest, so nobody can tell whether these files are as they were saved.")
    try:
        known = check(root)["files"]
    except ValueError as error:
        return told + badge("refused") + paragraph(str(error))
    rows = [[name, f"{fact['size']:,}", fact["sha256"]] for name, fact in known.items()]
    return told + badge("every file is what the manifest says") + table(rows, ["file", "bytes", "sha256"])
