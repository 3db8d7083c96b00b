"""Several methods on one model, side by side: configurations x methods x seeds, resumable."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from torch import nn

from zsaq.api import Score, Subject, numbers, run
from zsaq.method import Budget, Effort, Method
from zsaq.quant.config import QuantConfig
from zsaq.report.comparison import Comparison
from zsaq.train.trainer import Loop

SUBJECT: Final = ("tokenizer", "processor", "spec", "generator", "batches", "real", "text_pair")


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
    each run's steps lie in its `steps`. Raises ValueError as `zsaq.quantize` does, for an option that none of the
    methods has, and for a folder that holds runs of another model, effort or options.
    """
    subject = Subject.of(model, **{name: options.pop(name) for name in SUBJECT if name in options})
    loop, seeds = loop or Loop(), list(seeds)
    cells = [(text_of(config), config, subject.choose(method, config)) for config in configs for method in methods]
    known = {name for _, _, row in cells for name in row.options(effort)}
    if unknown := sorted(options.keys() - known):
        raise ValueError(
            f"none of these methods has {', '.join(unknown)}; their options are {', '.join(sorted(known))}"
        )
    budgets = {row.name: Budget.of(row, effort, owned(row, effort, options)) for _, _, row in cells}
    subject_and_budget = {"model": subject.name, "effort": effort, "options": spelled(options), "preset": preset}
    done = Comparison.read(folder, subject_and_budget) if folder is not None else Comparison(())
    main = loop.accelerator.is_main_process
    loop.accelerator.wait_for_everyone()  # before the first writes
    if score is not None and not any(each["method"] == "teacher" for each in done.runs):
        teacher = {"config": "", "method": "teacher", "seed": seeds[0], "zero_shot": True, "seconds": 0.0}
        done = done.add(teacher | numbers(score, subject.job.teacher), subject_and_budget, folder if main else None)
    for seed in seeds:
        for name, config, row in cells:
            budget = budgets[row.name]
            if done.holds(name, row.name, seed if budget.numbers else None):
                continue
            steps = None if folder is None else Path(folder) / "steps" / f"{name}-{row.name}-{seed}"
            own = dataclasses.replace(loop, folder=steps)
            student, seconds = run(subject, row, subject.config(row, config, preset)[0], budget, seed, own)
            told = {"config": name, "method": row.name, "seed": seed, "zero_shot": row.zero_shot, "seconds": seconds}
            done = done.add(told | numbers(score, student), subject_and_budget, folder if main else None)
    return done


def owned(row: Method, effort: Effort, options: dict[str, Any]) -> dict[str, Any]:
    """Those of the options that the method has."""
    return {name: value for name, value in options.items() if name in row.options(effort)}


def text_of(config: str | QuantConfig) -> str:
    """A configuration's name in tables."""
    return config if isinstance(config, str) else json.dumps(config.to_dict(), sort_keys=True)


def spelled(options: dict[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in sorted(options.items())}
