"""What kept runs belong to: a teacher, what was given with it, and methods and configurations by name."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any, Final

from torch import nn

from zsaq.method import Budget, Effort, Method
from zsaq.quant.config import QuantConfig
from zsaq.report.content import told, told_model
from zsaq.subject import GIVEN, OWN, SUBJECT, Subject
from zsaq.train.loop import Loop

PACKAGES: Final = ("zsaq", "torch", "transformers", "accelerate")


def key_of(
    subject: Subject, given: Mapping[str, Any], score: Callable[..., Any] | None, effort: Effort,
    options: Mapping[str, Any], preset: str | None,
) -> dict[str, Any]:  # fmt: skip
    """What kept runs belong to: the teacher by name and weights, and everything else that the numbers depend on."""
    apart = ("tokenizer", "processor", "generator", "base", "corpus")
    named = {name: given.get(name) for name in SUBJECT if name not in apart}
    pooled = {} if subject.sentence is None else {"pooling": str(subject.sentence.pooling)}
    return pooled | {
        "model": subject.name, "weights": told(subject.model), "reader": told(subject.reader),
        **{name: told_model(given.get(name)) for name in ("generator", "base")},
        "corpus": subject.corpus and subject.corpus.sha256, **{name: told(value) for name, value in named.items()},
        "score": told(score), "effort": effort, "preset": preset,
        "options": {name: told(value) for name, value in sorted(options.items())},
    }  # fmt: skip


def own_key(row: Method) -> dict[str, str]:
    """What runs of a callable belong to beside."""
    return {"callable": told(row.fit)} if row.inputs == OWN else {}


def circumstances(row: Method, budget: Budget, seed: int, loop: Loop) -> dict[str, Any]:
    """What else the numbers of a run depend on, to the last bit, beside its `own_key`."""
    return {
        "method": row.name, "seed": seed, "budget": str(budget), "accumulate": loop.accumulate,
        "schedule": f"{loop.schedule}, warmup {loop.warmup}", "mixed_precision": loop.accelerator.mixed_precision,
        **{name: "True" for name in ("eight_bit", "shared") if getattr(loop, name)},
        "processes": loop.accelerator.num_processes, "versions": {name: version(name) for name in PACKAGES},
    }  # fmt: skip


def check_names(methods: Sequence[str | Callable[..., nn.Module]], rows: Sequence[Method]) -> None:
    """Raises ValueError for a callable whose runs could not be told from another method's: `rows` are the methods', for
    each configuration."""
    seen: dict[str, Any] = {}
    for method, row in zip(methods, rows, strict=False):
        if callable(method) and seen.setdefault(row.name, method) != method:  # bound methods are made anew
            raise ValueError(
                f"the callable {method!r:.120} is called {row.name!r} in the table, and so is another of the methods: "
                "rename it (a def with a name of its own, or set its __name__)"
            )


def check_batches(batches: Any, rows: Sequence[Method]) -> None:
    """Raises ValueError for an iterator of batches where several runs read them, a row each: none would have the
    same."""
    runs = sum(row.name == GIVEN or row.inputs == OWN for row in rows)
    if isinstance(batches, Iterator) and runs > 1:
        raise ValueError(
            f"batches is a {type(batches).__name__}, in which each of {runs} runs would go on where the one before "
            "stopped: give a list or a DataLoader, which all read from its beginning"
        )


def config_name(config: str | QuantConfig) -> str:
    """A configuration's name in tables: its text, or the bits of weights and inputs and the start of a hash."""
    if isinstance(config, str):
        return config
    digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode()).hexdigest()
    weights, inputs = (16 if grid is None else grid.bits for grid in (config.weight, config.activation or config.input))
    return f"w{weights}a{inputs}-{digest[:8]}"
