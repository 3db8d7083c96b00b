"""One forward pass fits a student to its teacher, with no step of training: layer by layer, each on what those before
it, finished, leave it.

The step of a layer's input is searched on what really arrives; its weight is rounded with compensation on these inputs;
the BatchNorm behind it, or its bias where there is none, is moved by what the answer shifted. The order is ours, its
parts are known: GPTQ (arXiv 2210.17323) and bias correction (Nagel et al. 2019, arXiv 1906.04721).
"""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, cast, final

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from zsaq.quant.layers import QuantConv1D, QuantConv2d, QuantLayer, QuantLinear, quant_layers
from zsaq.quant.quantizer import Quantizer
from zsaq.quant.ranges import Static, static_ranges
from zsaq.train.compensation import check_damping, moment, round_layers
from zsaq.train.correction import answers_of, corrected, has_bias, joined
from zsaq.train.gptq import check_apart, check_fit
from zsaq.train.logging import StepLog, say
from zsaq.train.loop import Loop
from zsaq.train.optim import NotFinite, keeping
from zsaq.train.pair import Batch, first_input, run_model
from zsaq.train.rounding import LearnedStep, sampled
from zsaq.train.trainer import warn_of_several

Model = TypeVar("Model", bound=nn.Module)
FITTED = (QuantLinear, QuantConv1D, QuantConv2d)


@torch.no_grad()
def one_pass(
    student: Model, teacher: nn.Module, batches: Iterable[Batch], *, damping: float = 0.01, loop: Loop | None = None,
    stage: str = "onepass",
) -> Model:  # fmt: skip
    """Fit `student` to `teacher`, whose copy it is, in one pass of each over all samples of `batches`; returns it.

    In the order of execution: a static range becomes the step that is searched on what arrives there (of a module that
    is called at several places, on all of it); a weight whose range is kept is rounded as `zsaq.compensate` does,
    `damping` too, one whose range is min-max stays rounded to nearest; BatchNorms are moved as `correct_batch_norm`
    does, and the bias of a quantized layer whose answer no BatchNorm reads by the mean of what is missing in it. Layers
    that are called twice are fitted at the first call. `loop` gives device, folder and trackers, which hear each
    layer's "error", ||(w - q) x||^2 / ||w x||^2; several processes each bring as many samples of their own and end with
    the same student. Both models end in eval mode. Memory: a pass over all samples at once, and the unfolded input of
    few of them.

    Raises ValueError for no samples, damping that is not positive, weights that are not float32, a student that is no
    fresh copy of the teacher or shares a weight among layers, and for static ranges and layers that a pass does not
    reach; NotFinite, which holds the student, if the inputs of a layer or BatchNorm are not finite.
    What was fitted before stays so. Warns as `zsaq.calibrate` does, and says what is not compensated or corrected.
    """
    loop = loop or Loop()
    device = loop.accelerator.device
    check_damping(damping)
    batch = joined(batches, device)
    student.to(device).eval()
    teacher.to(device).eval()
    every = dict(quant_layers(student))
    fit = {name: layer for name, layer in every.items() if isinstance(layer, FITTED) and kept(layer)}
    check_fresh(student, teacher, every, fit)
    answers = answers_of(teacher, every, batch, loop.accelerator)
    steps = Steps(student, loop.accelerator)
    with keeping(student), StepLog(loop.accelerator, stage, len(fit), loop.folder, every=1) as log:
        weights = Weights(fit, steps, damping, loop, log)
        handles = [
            layer.register_forward_pre_hook(weights.reached(name), with_kwargs=True) for name, layer in every.items()
        ]
        handles += [quantizer.register_forward_pre_hook(steps.reached) for quantizer in steps.between]
        try:
            with corrected(student, answers, loop.accelerator):
                run_model(student, batch)
        finally:
            for handle in handles:
                handle.remove()
    if left := [name for name in fit if name not in weights.done]:
        globs = ", ".join(f'("{name}", None)' for name in left)
        raise ValueError(
            f"{left[:4]} are not reached by a forward pass: leave them in floats, by rules=({globs},) of the "
            "QuantConfig (zsaq.vision.presets.preset_config makes one of a text)"
        )
    if steps.missing:
        raise ValueError(
            f"{steps.missing} static ranges are not reached by a forward pass: leave their layers in floats, by rules "
            "of the QuantConfig"
        )
    warn_of_several(student, steps.several)
    bare = sum(name in answers.means and not has_bias(layer) for name, layer in every.items())
    rough = sum(name not in fit for name in every)
    if loop.accelerator.is_main_process and (rough or bare):
        say(
            f"{stage}: of {len(every)} layers {rough} stay rounded to nearest (compensation needs ranges='searched', "
            f"as under brecq), {bare} have no bias to correct, nor a BatchNorm right behind them"
        )
    return student


@final
class Steps:
    """The static ranges of a student, filled as they are reached; `between`: quantizers that belong to no layer."""

    def __init__(self, student: nn.Module, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        inputs = {layer.input_quantizer for _, layer in quant_layers(student)}
        quantizers = [module for module in student.modules() if isinstance(module, Quantizer)]
        self.between = [each for each in quantizers if each.ranges.static and each not in inputs]
        self.seen, self.several = dict[Static, Tensor](), set[nn.Module]()
        self.all = static_ranges(student)

    @property
    def missing(self) -> int:
        return sum(each not in self.seen for each in self.all)

    def reached(self, quantizer: Quantizer, args: tuple[Tensor]) -> None:
        """Hold the step that is searched on this tensor, and on those that came here before."""
        ranges = quantizer.ranges
        assert isinstance(ranges, Static)
        sample = cast(Tensor, self.accelerator.gather(sampled(args[0].detach().float())))
        if not sample.isfinite().all():
            raise NotFinite("what reaches a static range is not finite on these images; look at them")
        if ranges in self.seen:
            self.several.add(ranges)
        self.seen[ranges] = torch.cat([self.seen[ranges], sample]) if ranges in self.seen else sample
        ranges.hold(*LearnedStep(self.seen[ranges], quantizer.grid).bounds(quantizer.grid))


@final
class Weights:
    """The layers `fit` by name, rounded anew as they are reached; those that are `done`."""

    def __init__(self, fit: Mapping[str, QuantLayer], steps: Steps, damping: float, loop: Loop, log: StepLog) -> None:
        self.fit, self.steps, self.damping, self.loop, self.log = fit, steps, damping, loop, log
        self.done = set[str]()

    def reached(self, name: str):
        def hook(layer: QuantLayer, args: tuple, kwargs: dict[str, Any]) -> None:
            quantizer, x = layer.input_quantizer, first_input(args, kwargs)
            if quantizer is not None and quantizer.ranges.static:
                self.steps.reached(quantizer, (x,))
            if name in self.done or name not in self.fit:
                return
            total = moment(layer, layer.inputs(x).float()).double()
            if self.loop.accelerator.num_processes > 1:
                total = cast(Tensor, self.loop.accelerator.reduce(total, "sum"))
            if not total.isfinite().all():
                raise NotFinite(f"the inputs of {name} are not finite on these images; look at them")
            (error,) = round_layers([layer], total, self.damping)
            self.done.add(name)
            self.log.write(len(self.done), {"error": error})

        return hook


def check_fresh(
    student: nn.Module, teacher: nn.Module, every: Mapping[str, QuantLayer], fit: Mapping[str, QuantLayer]
) -> None:
    """Raises ValueError for a student of no layers, for layers `fit` that cannot be fitted or share a weight, and for
    layers and norms that do not hold what they hold in the teacher."""
    if not every:
        raise ValueError(
            "the student has no layer that is quantized; give a fresh zsaq.quantize_model(teacher, config): one that "
            "was saved and loaded is packed"
        )
    check_apart(fit)
    for name, layer in every.items():
        if name in fit:
            check_fit(name, layer)
        if layer.weight.dtype != torch.float32:
            raise ValueError(f"{name} holds {layer.weight.dtype}, which would not keep what is fitted; use .float()")
    origin = teacher.state_dict()
    for name, value in student.state_dict().items():
        there = origin.get(name)
        if there is None:
            strange = name.endswith(".weight") and name.removesuffix(".weight") in every
        else:
            same = there.shape == value.shape
            strange = not same or not (torch.equal(there.to(value), value) or torch.equal(there, value.to(there)))
        if strange:
            raise ValueError(
                f"{name} of the student is not that of the teacher, from which it would be fitted: give a fresh "
                "zsaq.quantize_model(teacher, config), not a student that was fitted or trained already"
            )


def kept(layer: QuantLayer) -> bool:
    return layer.weight_quantizer.ranges.kept
