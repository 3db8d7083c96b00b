"""Where SAM and SGA pay: one student in several forms of the fit, over budgets that differ by a hundred.

    PYTHONPATH=recipes python recipes/benchmarks/minimax.py outputs/minimax --steps 160 500 1600
    PYTHONPATH=recipes python recipes/benchmarks/minimax.py outputs/minimax --draw docs/minimax.png

The embedded teacher and generator (no download), steps of 32 rows, no warm start. "fresh": endless new text of the
generator; "fixed": 512 of its texts again and again; `real`: the teacher's own training sentences, an upper bound.
Every run is a line of runs.jsonl, and one that stands there is not repeated: `held` is the KL on text of the generator
that no run has learned from (what choices are made by), the others are scores on real test sentences. `seconds` are the
processor's, with what it took to write the text that was read, which the forms of one seed share.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, islice, product
from pathlib import Path
from typing import Any, Final

import torch

from zsaq import KL, Batch, Loop, Pair, QuantConfig, distill
from zsaq.language.job import TextJob
from zsaq.language.sam_sga import divergence, student_of, student_optimizer
from zsaq.language.sources import texts
from zsaq.language.text import Text
from zsaq.script import positive, told
from zsaq.train.averaging import Averaged
from zsaq.train.choosing import Chosen
from zsaq.train.loop import processes
from zsaq.train.state import read_state, write_state

with told():
    from examples import subjects

FORMS: Final[dict[str, dict[str, float]]] = {
    "plain": {}, "late-sam": {"rho": 0.16, "sam_share": 0.15}, "sam": {"rho": 0.16}, "sga": {"climbs": 1},
    "sam-sga": {"rho": 0.16, "climbs": 1}, "averaged": {"mean": 1 / 3}, "chosen": {"of": 4}, "real": {},
}  # fmt: skip
FIXED: Final = 512


class Tape:
    """A stream that is written once, into a file, and read by many; and the processor's seconds that writing took."""

    def __init__(self, file: Path, make: Callable[[], Iterator[Batch]]) -> None:
        self.file, self.make = file, make
        kept = read_state(file) if file.is_file() else {"batches": [], "seconds": 0.0}
        self.batches, self.seconds = kept["batches"], kept["seconds"]
        self.stream: Iterator[Batch] | None = None
        self.read, self.kept = 0, len(self.batches)

    def play(self) -> Iterator[Batch]:
        for place in count():
            if place == len(self.batches):
                self.stream = self.stream or islice(self.make(), place, None)
                start = time.process_time()
                self.batches.append(next(self.stream))
                self.seconds += time.process_time() - start
            self.read = place + 1
            yield self.batches[place]

    def keep(self) -> None:
        if len(self.batches) > self.kept:
            write_state(self.file, {"batches": self.batches, "seconds": self.seconds})
            self.kept = len(self.batches)


def fixed(job: TextJob, seed: int) -> Iterator[Batch]:
    """So many texts of the generator over and over."""
    writer: Any = job.text(seed)
    rows: list[list[int]] = []
    while len(rows) < FIXED:
        rows += writer.translated.lists()
        writer.renew()
    return texts(Text.of(rows[:FIXED]), job.words, job.layout, job.batch_size, seed=seed)


def run(job: TextJob, tape: Tape, form: str, bits: str, steps: int, seed: int) -> tuple[Any, float]:
    """The student, and the seconds."""
    form_of = FORMS[form]
    rates: dict[str, Any] = {name: form_of[name] for name in ("rho", "sam_share") if name in form_of}
    ascent = job.ascent(seed, lr=1e-4) if "climbs" in form_of else None
    before, start = tape.seconds, time.process_time()
    teacher = job.teacher
    student = student_of(teacher, QuantConfig.parse(bits))
    optimizer = student_optimizer(student, 0.0032, steps=steps, **rates)
    if "mean" in form_of:
        optimizer = Averaged(optimizer, steps - round(form_of["mean"] * steps) + 1, steps)
    source: Iterator[Batch] = tape.play() if ascent is None else ascent.text
    if "of" in form_of:
        source = Chosen(source, teacher, student, KL(), int(form_of["of"]))
    loop = Loop(processes(), every=10**9)
    distill(student, teacher, source, divergence(teacher, 1.0), optimizer, steps, loop, adversary=ascent)
    seconds = time.process_time() - start - (tape.seconds - before)
    return student, seconds + (0.0 if ascent else tape.read * tape.seconds / len(tape.batches))


@torch.no_grad()
def distance(job: TextJob, student: Any, held: list[Batch]) -> float:
    """KL(teacher || student) in nats, mean over the rows."""
    return statistics.mean(float(KL()(Pair(job.teacher, student, batch))) for batch in held)


def known(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def summary(runs: list[dict[str, Any]]) -> dict[tuple[str, str, str, int], dict[str, Any]]:
    """(text, bits, form, steps) -> mean and deviation over the seeds of every number, and how many `seeds`."""
    groups: dict[tuple[str, str, str, int], list[dict[str, Any]]] = {}
    for each in (each for each in runs if each["form"] in FORMS):
        groups.setdefault((each["text"], each["bits"], each["form"], each["steps"]), []).append(each)
    ordered = sorted(groups, key=lambda key: (*key[:2], list(FORMS).index(key[2]), key[3]))
    return {
        key: {"seeds": (len(groups[key]), 0.0)}
        | {
            name: (statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0)
            for name in ("seconds", "held", "kl", "agreement", "accuracy")
            for values in [[each[name] for each in groups[key]]]
        }
        for key in ordered
    }


def table(runs: list[dict[str, Any]]) -> str:
    """In Markdown, one number a cell."""
    lines = [
        "| text | bits | form | steps | seeds | seconds | KL, held-out synthetic | KL, real | agreement | accuracy |"
    ]
    lines += ["|---" * 10 + "|"]
    for (text, bits, form, steps), of in summary(runs).items():
        numbers = [f"{of['held'][0]:.4f} ± {of['held'][1]:.4f}", f"{of['kl'][0]:.4f} ± {of['kl'][1]:.4f}"]
        numbers += [f"{100 * of[name][0]:.2f} ± {100 * of[name][1]:.2f}" for name in ("agreement", "accuracy")]
        first = [text, bits, f"`{form}`", str(steps), str(of["seeds"][0]), f"{of['seconds'][0]:.0f}"]
        lines.append(f"| {' | '.join(first + numbers)} |")
    return "\n".join(lines)


def draw(runs: list[dict[str, Any]], target: Path) -> None:
    """KL and accuracy against seconds, a row of panels for each text at W2A8; bars are one deviation over the seeds,
    the dotted line is the teacher."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    of = {key: value for key, value in summary(runs).items() if key[1] == "w2a8"}
    rows = [text for text in ("fresh", "fixed") if any(key[0] == text for key in of)]
    figure = Figure(figsize=(11, 4.2 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), 2, squeeze=False)
    for line, text in zip(panels, rows, strict=True):
        for panel, (name, label) in zip(line, {"kl": "KL to the teacher", "accuracy": "accuracy"}.items(), strict=True):
            for color, form in enumerate(FORMS):
                points = [value for key, value in of.items() if key[0] == text and key[2] == form]
                if points:
                    panel.errorbar(
                        [each["seconds"][0] for each in points], [each[name][0] for each in points],
                        [each[name][1] for each in points], label=form, color=f"C{color}", marker="o", markersize=4,
                        capsize=3, linestyle="--" if form == "real" else "-",
                    )  # fmt: skip
            panel.set(xscale="log", xlabel="seconds on one core", ylabel=f"{label}, real test sentences")
            panel.set_title({"fresh": "endless new text", "fixed": f"{FIXED} texts again and again"}[text])
            axes = [panel.xaxis]
            if name == "kl":
                panel.set_yscale("log")
                axes.append(panel.yaxis)
                panel.legend(frameon=False)
            else:
                for each in (each for each in runs if each["form"] == "teacher"):
                    panel.axhline(each[name], color="black", linewidth=0.8, linestyle=":")
            for axis in axes:
                axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.set_major_formatter(StrMethodFormatter("{x:g}"))
                axis.set_minor_formatter(NullFormatter())
    figure.savefig(target, dpi=110)


def note(file: Path, line: dict[str, Any]) -> None:
    with file.open("a") as log:
        log.write(json.dumps(line) + "\n")
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--text", nargs="+", choices=["fresh", "fixed"], default=["fresh"])
    parser.add_argument("--bits", nargs="+", default=["w2a8"])
    parser.add_argument("--steps", nargs="+", type=positive, default=[160, 500, 1600])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--seconds", type=positive, help="begin no run after so many")
    parser.add_argument("--draw", type=Path, help="draw what was measured into this file, and run nothing")
    args = parser.parse_args()
    file = args.folder / "runs.jsonl"
    if args.draw:
        draw(known(file), args.draw)
        print(table(known(file)))
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    subject = subjects.python_docs(processes())
    job = TextJob.of(subject["model"], subject["tokenizer"], generator=subject["generator"], real=subject["real"])
    held = list(islice(job.text(1234), 32))
    if not known(file):
        note(file, {"form": "teacher", **subject["score"](job.teacher)})
    begin = time.monotonic()
    tapes: dict[tuple[str, int], Tape] = {}
    for seed, text, bits, steps, form in product(args.seeds, args.text, args.bits, args.steps, args.forms):
        key = {"form": form, "text": text, "bits": bits, "steps": steps, "seed": seed}
        if any(key.items() <= each.items() for each in known(file)) or (args.seconds or 1e9) < time.monotonic() - begin:
            continue
        source = "real" if form == "real" else text
        make = {"real": job.real_text, "fresh": job.text, "fixed": partial(fixed, job)}[source]
        if (source, seed) not in tapes:
            tapes[source, seed] = Tape(args.folder / f"{source}-{seed}.safetensors", partial(make, seed))
        tape = tapes[source, seed]
        torch.manual_seed(seed)
        student, seconds = run(job, tape, form, bits, steps, seed)
        tape.keep()
        line = key | {"seconds": round(seconds, 1), "held": round(distance(job, student, held), 5)}
        line |= {name: round(value, 5) for name, value in subject["score"](student).items()}
        note(file, line)


if __name__ == "__main__":
    with told():
        main()
