"""What is checked of a fit before its images are made, which takes minutes. Each raises ValueError."""

from collections.abc import Callable, Sequence

from torch import nn

from zsaq.method import Budget
from zsaq.quant.attention import rounds
from zsaq.quant.kinds import kind_of
from zsaq.quant.plan import Plan
from zsaq.train.gptq import check_apart
from zsaq.vision.job import ImageJob, check_spec

Check = Callable[[ImageJob, Plan, Budget], None]


def static_reached(job: ImageJob, plan: Plan, budget: Budget) -> None:
    """A static range that no image reaches would hold nothing."""
    modules = dict(job.teacher.named_modules())
    inputs = {name for name, own in plan.chosen.items() if own.input is not None and own.input.per == "tensor"}
    check_reached(job, [name for name in plan.chosen if name in inputs or rounds(modules[name])])


def all_reached(job: ImageJob, plan: Plan, budget: Budget) -> None:
    """A layer that is rounded by its inputs must have some."""
    check_reached(job, list(plan.chosen))


def apart(job: ImageJob, plan: Plan, budget: Budget) -> None:
    """What is rounded for one layer must not be the weight of another."""
    modules = dict(job.teacher.named_modules())
    check_apart({name: modules[name] for name in plan.chosen if kind_of(modules[name]) is not None})


def of_two(job: ImageJob, plan: Plan, budget: Budget) -> None:
    """A mixture is of two images."""
    for name in ("images", "batch_size"):
        if budget[name] < 2:
            raise ValueError(f"{name} is {budget[name]}; a mixture is of two images: give at least 2")


def check_reached(job: ImageJob, names: Sequence[str]) -> None:
    """Raises ValueError for modules that an empty image does not reach."""
    modules, seen = dict(job.teacher.named_modules()), set[nn.Module]()
    handles = [modules[name].register_forward_pre_hook(lambda module, _: seen.add(module)) for name in names]
    try:
        check_spec(job.teacher, job.spec)
    finally:
        for handle in handles:
            handle.remove()
    if left := [name for name in names if modules[name] not in seen]:
        globs = ", ".join(f'("{name}", None)' for name in left)
        raise ValueError(
            f"{', '.join(left[:4])}{' and others' if len(left) > 4 else ''}: no image reaches them, to set a range or "
            f"a rounding by; leave them in floats, by rules=({globs},) of the QuantConfig "
            "(zsaq.vision.presets.preset_config makes one of a text)"
        )
