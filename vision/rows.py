"""How a row of the table is made of a fit, the images that it learns from and the budgets that it takes.

`needs` of a row are names of `NEEDS`: what a teacher must have.
"""

import inspect
from collections.abc import Callable, Sequence
from types import NoneType
from typing import Any, get_args

from torch import nn

from zsaq.method import Budget, Method
from zsaq.quant.config import QuantConfig
from zsaq.quant.model import quantize_model
from zsaq.quant.plan import make_plan
from zsaq.train.logging import say
from zsaq.train.loop import Loop
from zsaq.train.pair import Batch
from zsaq.train.recomputing import recomputing
from zsaq.train.trainer import calibrate
from zsaq.vision.budgets import Counts
from zsaq.vision.early import Check, first_passable, normed, of_classes, static_reached
from zsaq.vision.extras import Extra, zeroq_ranges
from zsaq.vision.heads import has_head
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.images import images_of
from zsaq.vision.job import ImageJob
from zsaq.vision.models import has_attentions, has_batch_norms
from zsaq.vision.onepass import onepass
from zsaq.vision.papers.synq import filtered
from zsaq.vision.published import PAPERS, TABLE, published
from zsaq.vision.sources.crops import minibatches

ANY, NORMS, HEADED = "any", "BatchNorm", "BatchNorm and a linear head"
ATTENTION, ATTENTION_HEADED = "a vision transformer", "a vision transformer with one linear head"
NEEDS: dict[str, Callable[[nn.Module, ImageSpec | None], bool]] = {
    ANY: lambda teacher, spec: True,
    NORMS: lambda teacher, spec: has_batch_norms(teacher),
    HEADED: lambda teacher, spec: has_batch_norms(teacher) and has_head(teacher, spec),
    ATTENTION: lambda teacher, spec: has_attentions(teacher),
    ATTENTION_HEADED: lambda teacher, spec: has_attentions(teacher) and has_head(teacher, spec),
}
FIRST = {"images": 64, "steps": 60}  # whatever a row's own budget is
OF_IMAGES = ("images", "image_steps")  # budgets that a fit does not see
OF_JOB = {"seed", "loop", "folder", "ranges", "source", "layer", "learn", "mean", "deviation", "stage"}
INPUTS = {
    "": "images of a generator that learns beside the student",
    "noise": "Gaussian noise",
    "pink": "noise with the spectrum and the colours of photographs",
    "real": "real images",
    "given": "given batches",
    "sources": "images synthesized from the teacher (genie)",
}


def rounded(
    name: str, images: str, idea: str, *, budgets: Counts, needs: str, preset: str = "brecq", paper: str = "",
    zero_shot: bool = True,
) -> Method:  # fmt: skip
    """Round-to-nearest with the static ranges of the images; no step is taken."""

    def fit(job: ImageJob, config: QuantConfig, budget: Budget, seed: int, loop: Loop) -> nn.Module:
        batch: Any = learned_from(job, images, config, budget, seed, loop, checks_of(needs))
        return calibrate(quantize_model(job.teacher, config), minibatches(batch, 64), loop.accelerator)

    return Method(
        name, idea, fit, inputs_of(images), PAPERS[paper], needs, "a forward pass, beside the images", budgets,
        zero_shot=zero_shot, preset=preset,
    )  # fmt: skip


def fitted(
    name: str, method: Callable[..., nn.Module], images: str, idea: str, *, budgets: Counts, needs: str, preset: str,
    cost: str, paper: str = "", extra: Extra = lambda job, budget, seed: {}, clear: float | None = None,
    zero_shot: bool = True, checks: Sequence[Check] = (), **fixed: Any,
) -> Method:  # fmt: skip
    """A fit on the images of that name; "" for a generator's own, which the fit brings.

    Counts of the budget go to the fit by their names. Settings are its other keyword arguments, but for those that the
    row has `fixed` and what only the job knows, which `extra` gives; its learning rate is the published one times the
    setting `speed`. Where the preset is uniform, the student may begin with `onepass` on pyramid images, by the setting
    `onepass`, instead of with calibrated ranges. `clear`: the cutoff of SynQ's filter, where it stands before the fit.
    `checks` come before the images.
    """
    settings = settings_of(method, {*budgets, *fixed})
    checks = (*checks_of(needs), *checks)
    if preset == "uniform" and zero_shot:
        settings["onepass"] = False
        checks = (*checks, first_passable)
    if preset == "uniform" or "speed" in settings:  # it distills
        checks = (*checks, of_classes)

    def fit(job: ImageJob, config: QuantConfig, budget: Budget, seed: int, loop: Loop) -> nn.Module:
        options = published(method, job.spec) | fixed
        for option, default in settings.items():
            if default is not None or budget[option] is not None:  # None in the table: the paper's
                options[option] = budget[option]
        settled = Budget(budget.effort, {**budget.numbers, **options})
        batch: Any = learned_from(job, images, config, settled, seed, loop, checks)
        if (speed := options.pop("speed", None)) is not None:
            options["lr"] *= speed
        start, more = config, extra
        if options.pop("onepass", False):
            if loop.accelerator.is_main_process:
                say(f"{name}: begins with one pass on {FIRST['images']} pyramid images of {FIRST['steps']} steps")
            start = onepass(job.teacher, config, job.spec, first_images(job, seed), seed=seed, loop=loop)
            more = unranged(extra)
        options |= {count: budget[count] for count in budgets if count not in OF_IMAGES}
        return method(
            job.teacher, start, job.spec, batch if clear is None else filtered(batch, clear), seed=seed, loop=loop,
            folder=job.folder(name, seed), **options, **more(job, budget, seed),
        )  # fmt: skip

    return Method(
        name, idea, fit, inputs_of(images), PAPERS[paper], needs, cost, budgets, settings, zero_shot, preset,
        optional_of(method), {name: kind_of(method, name) for name, default in settings.items() if default is None},
    )  # fmt: skip


def learned_from(
    job: ImageJob, images: str, config: QuantConfig, budget: Budget, seed: int, loop: Loop, checks: Sequence[Check] = ()
) -> Any:
    """The images of that name, None for a generator's own; the teacher goes where the loop runs.

    Raises ValueError for a configuration that does not fit the teacher, for a loop that recomputes what the teacher has
    no blocks for, and as the `checks` do, before any image is made.
    """
    plan = make_plan(job.teacher, config)
    with recomputing(job.teacher, loop.recompute):
        pass
    job.teacher.to(loop.accelerator.device)
    for check in (static_reached, *checks):
        check(job, plan, budget)
    count, steps = (budget.numbers.get(name, 0) for name in OF_IMAGES)
    return images_of(job, images, seed, images=count, steps=steps) if images else None


def checks_of(needs: str) -> tuple[Check, ...]:
    """Of a row that needs this: statistics are read where a BatchNorm is needed."""
    return (normed,) if needs in (NORMS, HEADED) else ()


def first_images(job: ImageJob, seed: int) -> Batch:
    """Pyramid images for the one pass that a student may begin with."""
    images: Any = images_of(job, "pyramid", seed, **FIRST)
    return images


def settings_of(method: Callable[..., Any], named: set[str]) -> dict[str, Any]:
    """Keyword arguments of a fit that are neither of the job nor `named` already, with their defaults; None where the
    paper's depends on the size of the images. Its learning rate, where it is published, as `speed`."""
    sized = TABLE.get(method, ({}, {}))[0]
    settings = {
        name: None if name in sized else parameter.default
        for name, parameter in inspect.signature(method).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name not in OF_JOB | named
    }
    if "lr" in sized:
        del settings["lr"]
        settings["speed"] = 1.0
    return settings


def optional_of(method: Callable[..., Any]) -> frozenset[str]:
    """The arguments of a fit that may be None: what None leaves out."""
    parameters = inspect.signature(method).parameters.items()
    return frozenset(name for name, parameter in parameters if NoneType in get_args(parameter.annotation))


def kind_of(method: Callable[..., Any], name: str) -> type:
    """The type of an argument of a fit, beside None."""
    annotation = inspect.signature(method).parameters[name].annotation
    return next((kind for kind in get_args(annotation) if kind is not NoneType), annotation)


def inputs_of(images: str) -> str:
    """Where the student's inputs come from, in words."""
    return INPUTS.get(images, f"images synthesized from the teacher ({images})")


def unranged(extra: Extra) -> Extra:
    """`extra` for a student that has its ranges."""
    return (lambda job, budget, seed: {}) if extra is zeroq_ranges else extra
