"""Several methods on one model, side by side: configurations x methods x seeds, resumable."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from torch import nn

from zsaq.api import OWN, Subject, budget_of, run
from zsaq.io.teacher import name_of as model_name
from zsaq.io.teacher import unchanged
from zsaq.method import Effort, Method
from zsaq.quant.config import QuantConfig
from zsaq.report.comparison import Comparison
from zsaq.student import Score, numbers
from zsaq.train.trainer import Loop

SUBJECT: Final = ("tokenizer", "processor", "spec", "generator", "batches", "real", "text_pair", "teacher_bits")


def compare(
    model: str | Path | nn.Module, configs: Sequence[str | QuantConfig],
    methods: Sequence[str | Callable[..., nn.Module]], *, seeds: Iterable[int] = (0,), score: Score | None = None,
    folder: str | Path | None = None, effort: Effort = "default", preset: str | None = None, loop: Loop | None = None,
    **options: Any,
) -> Comparison:  # fmt: skip
    """A student of `model` for every configuration, method and seed, measured by `score`; only numbers are kept.

    The arguments are those of `zsaq.quantize`; an option goes to those of the methods that have it. A method without
    any option draws nothing at random and runs for one seed only. Synthetic images are made once for all methods and
    configurations that share them. In `folder` finished runs are kept (runs.jsonl) and not repeated: a comparison may
    be stopped and goes on, and several processes may share the work by configurations, methods or seeds; the numbers of
    each run's steps lie in its `steps`. Raises ValueError as `zsaq.quantize` does, before anything is spent, for an
    option that none of the methods has, and for a folder that holds runs of another model, effort or options.
    """
    for name, several in {"configs": configs, "methods": methods}.items():
        if isinstance(several, str) or not isinstance(several, Sequence) or not several:
            raise ValueError(f"{name} is {several!r:.200}; give a list of at least one")
    if not (seeds := list(seeds)):
        raise ValueError("seeds is empty; give at least one")
    generator = named(options.get("generator"))
    subject = Subject.of(model, **{name: options.pop(name) for name in SUBJECT if name in options})
    loop, rows = loop or Loop(), [(config, subject.choose(method, config)) for config in configs for method in methods]
    known = sorted({name for _, row in rows for name in row.options()})
    if unknown := [name for name in sorted(options) if name not in known]:
        listed = ", ".join(known) or "none"
        raise ValueError(f"none of these methods has the option {', '.join(unknown)}; their options are {listed}")
    with unchanged(*subject.untouched()):
        cells = [
            (
                config_name(config),
                row,
                subject.config(row, config, preset)[0],
                budget_of(row, effort, owned(row, options)),
            )
            for config, row in rows
        ]
        of = {
            "model": subject.name, "generator": generator, "effort": effort, "options": spelled(options),
            "preset": preset,
        }  # fmt: skip
        done = Comparison.read(folder, of) if folder is not None else Comparison(())
        kept = folder if loop.accelerator.is_main_process else None
        loop.accelerator.wait_for_everyone()  # before the first writes
        subject.prepare((row for _, row in rows), loop)
        if score is not None and not any(each["method"] == "teacher" for each in done.runs):
            teacher = {"config": "", "method": "teacher", "seed": seeds[0], "zero_shot": True, "seconds": 0.0}
            done = done.add(teacher | numbers(score, subject.model), of, kept)
        for seed in seeds:
            for name, row, config, budget in cells:
                if done.holds(name, row.name, seed if budget.numbers or row.inputs == OWN else None):
                    continue
                steps = None if folder is None else Path(folder) / "steps" / f"{name}-{row.name}-{seed}"
                student, seconds = run(subject, row, config, budget, seed, dataclasses.replace(loop, folder=steps))
                facts = {"config": name, "method": row.name, "seed": seed, "zero_shot": row.zero_shot}
                done = done.add(facts | {"seconds": seconds} | numbers(score, student), of, kept)
    return done


def named(generator: Any) -> str | None:
    """Of a generator that is given by a path or id: what it is called."""
    return model_name(str(generator)) if isinstance(generator, str | Path) else None


def owned(row: Method, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options that the method has."""
    return {name: value for name, value in options.items() if name in row.options()}


def config_name(config: str | QuantConfig) -> str:
    """A configuration's name in tables: its text, or the bits of weights and inputs and the start of a hash."""
    if isinstance(config, str):
        return config
    digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode()).hexdigest()
    weights, inputs = (16 if grid is None else grid.bits for grid in (config.weight, config.activation or config.input))
    return f"w{weights}a{inputs}-{digest[:8]}"


def spelled(options: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in sorted(options.items())}
