"""Several methods on one model, side by side: configurations x methods x seeds, resumable."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from torch import nn

from zsaq.api import budget_of, run
from zsaq.io.target import ready_comparison
from zsaq.io.teacher import unchanged
from zsaq.keys import check_batches, check_names, circumstances, config_name, key_of, own_key
from zsaq.method import Effort, Method
from zsaq.quant.config import QuantConfig
from zsaq.report.comparison import KEYS, Comparison
from zsaq.report.runs import mend, once
from zsaq.student import Score, numbers
from zsaq.subject import OWN, SUBJECT, Subject
from zsaq.train.checkpoint import Checkpoint, Taken
from zsaq.train.logging import say
from zsaq.train.loop import Loop
from zsaq.train.widening import released, widened

TAKEN: Final = (*KEYS, "of", "seeds", "data seen")  # what a run and a row of the table call their own


def compare(
    model: str | Path | nn.Module, configs: Sequence[str | QuantConfig],
    methods: Sequence[str | Callable[..., nn.Module]], *, seeds: Iterable[int] = (0,), score: Score | None = None,
    folder: str | Path | None = None, effort: Effort = "default", preset: str | None = None, loop: Loop | None = None,
    checkpoint_every: int | None = None, **options: Any,
) -> Comparison:  # fmt: skip
    """A student of `model` for every configuration, method and seed, measured by `score`; only numbers are kept.

    The arguments are those of `zsaq.quantize`; an option goes to those of the methods that have it, and all go to a
    callable. A method without any option draws nothing at random and runs for one seed only. Synthetic images are made
    once for all methods and configurations that share them. In `folder` finished runs are kept (runs.jsonl) and not
    repeated, nor are the steps of one that was stopped (`checkpoint_every`, as in `zsaq.quantize`): a comparison may be
    stopped and goes on, and several processes may share the work by configurations,
    methods or seeds; the numbers of each run's steps lie in its `steps`.

    Raises ValueError as `zsaq.quantize` does, before anything is spent, for an option that none of the methods has, for
    a callable that is called like another method, for an iterator of batches that several runs would read, for a folder
    that cannot be written to or holds anything else than a comparison, and for one that holds runs of other weights,
    inputs, effort, options, another score or callable; and for a score that answers no numbers.

    What was given is looked at before the first run, on the main process. Functions are known by module and name, one
    without a name of its own by code and what it holds, iterators by class, loaders by data set and length, devices,
    accelerators, progress bars, generators of random numbers and threads by class, all else by content, a tokenizer's
    rules and an object's attributes too. What an object or a closure notes while it runs (a counter, a list, its last
    answer) is a part of it: where it is given again in the same process, it is something else. Keep such notes out of
    it by a `__getstate__` of its class, a `functools.cached_property`, or fields of a dataclass with `compare=False`.
    Tensors of a module that are neither parameters nor buffers are no part of it.
    """
    for name, several in {"configs": configs, "methods": methods}.items():
        if isinstance(several, str) or not isinstance(several, Sequence) or not several:
            raise ValueError(f"{name} is {several!r:.200}; give a list of at least one")
    if folder is not None and not (isinstance(folder, str | os.PathLike) and str(folder)):
        raise ValueError(f"folder is {folder!r:.80}; give one for the runs, or None to keep none")
    if not isinstance(seeds, Iterable) or not (seeds := list(seeds)):
        raise ValueError(f"seeds is {seeds!r:.80}; give a list of at least one integer")
    if wrong := [seed for seed in seeds if type(seed) is not int or not 0 <= seed < 2**32]:
        raise ValueError(f"seeds has {wrong[0]!r}; give integers of at least 0 and below 2**32")
    if score is not None and not callable(score):
        raise ValueError(f"score is {score!r:.200}; give a function of a model that answers numbers by name, or one")
    if folder is not None:
        ready_comparison(folder)
    given = {name: options.pop(name) for name in SUBJECT if name in options}
    loop = loop or Loop()
    subject = Subject.of(model, **given, shared=loop.shared)
    rows = [(config, subject.choose(method, config, effort)) for config in configs for method in methods]
    check_names(methods, [row for _, row in rows])
    subject.check_reads((row for _, row in rows), configs)
    check_batches(given.get("batches"), [row for _, row in rows] * len(seeds))
    check_options([row for _, row in rows], options)
    with unchanged(*subject.untouched()), released(subject.model):
        cells = [
            (
                config_name(config),
                row,
                subject.config(row, config, preset)[0],
                budget_of(row, effort, owned(row, options)),
            )
            for config, row in rows
        ]
        main, done = loop.accelerator.is_main_process, Comparison(())
        of: dict[str, Any] = {}
        own: dict[str, Any] = {}
        if folder is not None:  # before anything runs: objects may note what they do
            of = loop.agreed(key_of(subject, given, score, effort, options, preset))
            own = loop.agreed({row.name: own_key(row) for _, row in rows})
            dropped = mend(folder, of, own, main)
            if dropped and main:
                say(dropped)
            loop.accelerator.wait_for_everyone()  # before others read what was mended
            done = once(Comparison.read(folder, of))
        kept = folder if main else None
        loop.accelerator.wait_for_everyone()  # before the first writes
        subject.prepare((row for _, row in rows), loop)
        if score is not None and not any(each["method"] == "teacher" for each in done.runs):
            teacher = {"config": "", "method": "teacher", "seed": seeds[0], "zero_shot": True, "seconds": 0.0}
            with widened(subject.model):
                done = done.add(teacher | scored(score, subject.model), of, kept)
        for seed in seeds:
            for name, row, config, budget in cells:
                if done.holds(name, row.name, seed if budget.numbers or row.inputs == OWN else None):
                    continue
                facts = {"config": name, "method": row.name, "seed": seed, "zero_shot": subject.zero_shot(row)}
                if folder is None:
                    student, seconds = run(subject, row, config, budget, seed, loop)
                    done = done.add(facts | {"seconds": seconds} | scored(score, student), of, None)
                    continue
                cell = f"{name}-{row.name}-{seed}"
                steps = dataclasses.replace(loop, folder=Path(folder) / "steps" / cell)
                key = of | own[row.name] | {"config": name} | circumstances(row, budget, seed, loop)
                keeper = Checkpoint(
                    Path(folder) / "checkpoints" / cell, key, every=checkpoint_every, resume=True, asked=False
                )
                try:
                    with keeper:
                        student, seconds = run(subject, row, config, budget, seed, steps)
                except Taken:
                    say(f"{cell} is being made by another process, to which it is left")
                    continue
                done = done.add(facts | {"seconds": seconds} | scored(score, student), of | own[row.name], kept)
                keeper.remove()
        if folder is not None and main:
            with suppress(OSError):  # another process is at work
                (Path(folder) / "checkpoints").rmdir()
    return done


def scored(score: Score | None, model: nn.Module) -> dict[str, float]:
    """The numbers of a score. Raises ValueError for what is none, and for a name that the table has for itself."""
    found = numbers(score, model)
    for name in found:
        if name in TAKEN or name.endswith(" sd"):
            raise ValueError(
                f"the score calls a number {name!r:.80}; rename it: not ending in ' sd' and none of "
                f"{', '.join(TAKEN)}, which the table has for itself"
            )
    return found


def check_options(rows: Sequence[Method], options: Mapping[str, Any]) -> None:
    """Raises ValueError for an option that none of the methods has."""
    known = sorted({name for row in rows for name in row.options()})
    unknown = [name for name in sorted(options) if name not in known]
    if unknown and not any(row.inputs == OWN for row in rows):
        listed = ", ".join(known) or "none"
        raise ValueError(f"none of these methods has the option {', '.join(unknown)}; their options are {listed}")


def owned(row: Method, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options that the method has; a callable has all."""
    return {name: value for name, value in options.items() if row.inputs == OWN or name in row.options()}
