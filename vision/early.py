"""What is checked of a fit before its images are made, which takes minutes. Each raises ValueError.

The budget that checks see has the paper's values where none were given.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

import torch
from torch import nn

from zsaq.method import Budget
from zsaq.quant.attention import rounds
from zsaq.quant.kinds import kind_of
from zsaq.quant.plan import Plan
from zsaq.train.gptq import check_apart, check_float32
from zsaq.train.logging import say
from zsaq.train.rounding import UNEVEN
from zsaq.train.synthesis import process_index
from zsaq.vision.classifier import answered, class_name
from zsaq.vision.job import ImageJob, check_spec
from zsaq.vision.losses.disagreement import EntropyMargin
from zsaq.vision.losses.features import ActivationMap
from zsaq.vision.losses.moments import unreached
from zsaq.vision.losses.smoothness import check_texture
from zsaq.vision.models import blocks, last_feature_map
from zsaq.vision.papers.plf import check_falling
from zsaq.vision.sources.generators import check_batch, first_side
from zsaq.vision.sources.pink import pink_images

Check = Callable[[ImageJob, Plan, Budget], None]


def static_reached(job: ImageJob, plan: Plan, budget: Budget) -> None:
    """A static range that no image reaches would hold nothing."""
    modules = dict(job.teacher.named_modules())
    inputs = {name for name, own in plan.chosen.items() if own.input is not None and own.input.per == "tensor"}
    check_reached(job, [name for name in plan.chosen if name in inputs or rounds(modules[name])])


def passable(job: ImageJob, plan: Plan, budget: Budget) -> None:
    """One pass rounds a layer, but for min-max ranges, by its inputs, and for itself."""
    layers = {name: layer for name, layer in layers_of(job, plan).items() if plan.chosen[name].ranges != "minmax"}
    check_apart(layers)
    check_called(job, list(layers))


def learnable(job: ImageJob, plan: Plan, budget: Budget) -> None:
    """Rounding up or down is learned for each layer by itself, on even levels."""
    layers = layers_of(job, plan)
    check_apart(layers)
    check_called(
        job, [name for name, block in blocks(job.teacher) if any(m in layers.values() for m in block.modules())]
    )
    for name in layers:
        grid = plan.chosen[name].weight
        if grid is not None and not grid.uniform:
            what = f"rounding up or down is learned on even levels, and {grid.levels} ones are not"
            raise ValueError(f"{name}: {what}: {UNEVEN}")


def in_float32(job: ImageJob, plan: Plan, budget: Budget) -> None:
    """A student that is learned in the teacher's dtype."""
    check_float32(layers_of(job, plan))


def of_classes(job: ImageJob, plan: Plan, budget: Budget) -> None:
    """KL is between answers that are shares of classes."""
    pixels = torch.zeros(1, job.spec.channels, job.spec.size, job.spec.size)
    if job.spec.classes == 1 and answered(job.teacher, pixels).headless is None:
        raise ValueError(
            f"{class_name(job.teacher)} answers one number, of which KL is always 0: take a method that learns from "
            "the layers' answers, as onepass or genie"
        )


def of_two(job: ImageJob, plan: Plan, budget: Budget, name: str = "images") -> None:
    """A mixture is of two images."""
    if budget[name] < 2:
        raise ValueError(f"{name} is {budget[name]}; a mixture is of two images: give at least 2")


def in_pairs(job: ImageJob, plan: Plan, budget: Budget) -> None:
    """One that is made anew in every batch is of two there."""
    of_two(job, plan, budget, "batch_size")


def normed(job: ImageJob, plan: Plan, budget: Budget) -> None:
    """Images reach BatchNorms; it is said which they do not."""
    if (left := unreached(job.teacher, pink_images(job.spec, images=1)["pixel_values"])) and process_index() == 0:
        say(f"{', '.join(left)}: no image reaches these BatchNorms, whose statistics are left out")


def first_passable(job: ImageJob, plan: Plan, budget: Budget) -> None:
    """A student that begins with one pass."""
    if budget["onepass"]:
        passable(job, plan, budget)


def doubled(times: int) -> Check:
    """A generator, which doubles its maps so many times, makes images of this size, several at once."""

    def check(job: ImageJob, plan: Plan, budget: Budget) -> None:
        first_side(job.spec, times)
        check_batch(budget["batch_size"])

    return check


def within_margins(job: ImageJob, plan: Plan, budget: Budget) -> None:
    """AdaSG's margins are in order."""
    EntropyMargin(*budget["margins"])


def falling(job: ImageJob, plan: Plan, budget: Budget) -> None:
    """PLF's threshold falls."""
    check_falling(budget["highest"], budget["lowest"])


def textured(job: ImageJob, plan: Plan, budget: Budget) -> None:
    """TexQ measures texture, unless it is left out."""
    if budget["texture"]:
        check_texture(job.spec.size)


def mapped(job: ImageJob, plan: Plan, budget: Budget) -> None:
    """SynQ's activation maps show several places, unless they are left out."""
    if budget.numbers.get("maps", True):
        ActivationMap(job.teacher, torch.zeros(1, job.spec.channels, job.spec.size, job.spec.size))


def convolved(job: ImageJob, plan: Plan, budget: Budget) -> None:
    """Gradients are matched at the last map, which a convolution answers."""
    (name,) = last_feature_map(job.teacher, job.spec).names
    last = job.teacher.get_submodule(name)
    if not isinstance(last, nn.Conv2d):
        raise ValueError(
            f"{class_name(job.teacher)}: its last map is what {name} answers, a {type(last).__name__}, and gradients "
            "are matched at convolutions: take sadag, which matches them at the head"
        )


def layers_of(job: ImageJob, plan: Plan) -> dict[str, nn.Module]:
    """The layers of the plan that hold weights, but tables. Raises ValueError if there is none."""
    modules = dict(job.teacher.named_modules())
    layers = {name: modules[name] for name in plan.chosen if kind_of(modules[name]) not in (None, nn.Embedding)}
    if not layers:
        raise ValueError(
            "the configuration rounds no layer, which this method fits: give it a grid for weights or inputs of layers "
            "(QuantConfig.weight, .input), or take rtn-noise or zeroq, which set ranges alone"
        )
    return layers


def check_called(job: ImageJob, names: Sequence[str]) -> None:
    """Raises ValueError for modules that no image reaches, and for those whose forward is called past their hooks."""
    hooked = check_reached(job, names)
    if left := [name for name in names if name not in hooked]:
        raise ValueError(
            f"{', '.join(left[:4])}{' and others' if len(left) > 4 else ''}: their forward is called, and not they "
            "themselves, so hooks do not see their inputs, by which this method rounds: call the layer, layer(x) for "
            "layer.forward(x), or take zeroq, which sets ranges alone"
        )


def check_reached(job: ImageJob, names: Sequence[str]) -> set[str]:
    """Raises ValueError for modules that neither an empty image nor noise reaches; answers those that hooks see."""
    modules, called, hooked = dict(job.teacher.named_modules()), set[str](), set[str]()
    asked = {name: modules[name] for name in names}
    with calls_noted(asked, called), hooks_noted(asked, hooked):  # hooks keep torch from fusing modules
        check_spec(job.teacher, job.spec)
        if not hooked.issuperset(names):
            answered(job.teacher, pink_images(job.spec, images=8)["pixel_values"])
    if left := [name for name in names if name not in called | hooked]:
        globs = ", ".join(f'("{name}", None)' for name in left)
        raise ValueError(
            f"{', '.join(left[:4])}{' and others' if len(left) > 4 else ''}: no image reaches them, to set a range or "
            f"a rounding by; leave them in floats, by rules=({globs},) of the QuantConfig "
            "(zsaq.vision.presets.preset_config makes one of a text)"
        )
    return hooked


@contextmanager
def hooks_noted(modules: Mapping[str, nn.Module], seen: set[str]) -> Iterator[None]:
    """Inside, names are added whose module is called as hooks see it."""
    noting = {name: partial(lambda name, *_: seen.add(name), name) for name in modules}
    handles = [module.register_forward_pre_hook(noting[name]) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def calls_noted(modules: Mapping[str, nn.Module], seen: set[str]) -> Iterator[None]:
    """Inside, names are added whose module's forward is called; not by hooks, which layer.forward(x) passes by."""
    before = {name: module.__dict__.get("forward") for name, module in modules.items()}

    def noting(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(forward)
        def noted(*args: Any, **kwargs: Any) -> Any:
            seen.add(name)
            return forward(*args, **kwargs)

        return noted

    try:
        for name, module in modules.items():
            module.__dict__["forward"] = noting(name, module.forward)
        yield
    finally:
        for name, module in modules.items():
            module.__dict__.pop("forward", None)
            if before[name] is not None:
                module.__dict__["forward"] = before[name]
