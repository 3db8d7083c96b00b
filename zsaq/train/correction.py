"""What rounding shifts is shifted back: statistics of BatchNorms, or biases of layers that no BatchNorm reads, moved by
what the student's answers differ from the teacher's on the same batch.

Both sides are shown the same, so what synthetic images have of their own cancels.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeGuard, TypeVar, cast, final

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.weak import WeakIdKeyDictionary

from zsaq.quant.layers import QuantLayer, quant_layers
from zsaq.train.loop import Loop
from zsaq.train.optim import NotFinite, keeping
from zsaq.train.pair import Batch, first_input, listed, run_model
from zsaq.train.widening import widened

Model = TypeVar("Model", bound=nn.Module)
RATIO = (0.05, 20.0)  # between which a variance may be scaled


@final
@dataclass
class Answers:
    """Of a teacher to one batch: `norms`, the BatchNorms, with variance and mean [C] of what each reads; `means` [C] of
    what each layer answers whose answer goes to no BatchNorm at once; both by name."""

    norms: dict[str, tuple[_BatchNorm, tuple[Tensor, Tensor]]] = field(default_factory=dict)
    means: dict[str, Tensor] = field(default_factory=dict)


@torch.no_grad()
def answers_of(teacher: nn.Module, layers: Iterable[str], batch: Batch, accelerator: Accelerator) -> Answers:
    """What the teacher's BatchNorms read, and what those of its `layers` answer that are called."""
    answers, wanted, whose = Answers(), set(layers), WeakIdKeyDictionary()
    called = set[str]()

    def read(name: str):
        def hook(module: _BatchNorm, args: tuple, kwargs: dict[str, Any]) -> None:
            x = first_input(args, kwargs)
            layer = whose.get(x)
            if layer is not None and x._version == layer[1]:  # nothing was done to it in place meanwhile
                answers.means.pop(layer[0], None)
            answers.norms.setdefault(name, (module, moments(x, accelerator)))

        return hook

    def answered(name: str):
        def hook(module: nn.Module, args: tuple, answer: Tensor) -> None:
            if name not in called:  # what a layer adds is corrected where it is called first
                called.add(name)
                whose[answer] = name, answer._version
                answers.means[name] = mean_answer(module, answer, accelerator)

        return hook

    modules = list(teacher.named_modules())
    handles = [m.register_forward_pre_hook(read(name), with_kwargs=True) for name, m in modules if has_statistics(m)]
    handles += [m.register_forward_hook(answered(name)) for name, m in modules if name in wanted]
    try:
        with widened(teacher):
            run_model(teacher, batch)
    finally:
        for handle in handles:
            handle.remove()
    return answers


@contextmanager
def corrected(student: nn.Module, answers: Answers, accelerator: Accelerator) -> Iterator[None]:
    """Inside, the first pass of `student` corrects each BatchNorm and each bias before what comes after it sees it.

    Raises ValueError for a student whose BatchNorms are not those of the teacher that gave the `answers`; inside,
    NotFinite for what is not finite in either.
    """
    done = set[nn.Module]()

    def norm(name: str):
        def hook(module: _BatchNorm, args: tuple, kwargs: dict[str, Any]) -> None:
            if module not in done:
                done.add(module)
                own, (origin, whole) = moments(first_input(args, kwargs), accelerator), answers.norms[name]
                check_finite(name, *own, *whole)
                shift_statistics(module, own, origin, whole)

        return hook

    def bias(name: str):
        def hook(module: nn.Module, args: tuple, answer: Tensor) -> Tensor:
            if module in done:
                return answer
            done.add(module)
            missing = answers.means[name] - mean_answer(module, answer, accelerator)
            check_finite(name, missing)
            cast(Tensor, module.bias).add_(missing.to(cast(Tensor, module.bias)))
            return answer + (missing[:, None, None] if isinstance(module, nn.Conv2d) else missing).to(answer)

        return hook

    norms = [(name, m) for name, m in student.named_modules() if has_statistics(m) and name in answers.norms]
    sizes = {name: m.num_features for name, m in norms}
    if strange := [name for name, (m, _) in answers.norms.items() if sizes.get(name) != m.num_features]:
        raise ValueError(f"the student is no copy of the teacher, whose BatchNorm {strange[0]} it does not have")
    biased = [(name, m) for name, m in quant_layers(student) if name in answers.means and has_bias(m)]
    handles = [m.register_forward_pre_hook(norm(name), with_kwargs=True) for name, m in norms]
    handles += [m.register_forward_hook(bias(name)) for name, m in biased]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def correct_batch_norm(
    student: Model, teacher: nn.Module, batches: Iterable[Batch], *, loop: Loop | None = None
) -> Model:
    """Move the statistics of the student's BatchNorms, one after the other, in place; returns it.

    With v, m the variance and mean of a BatchNorm's input over all samples of `batches` in student (s) and teacher (t):
    r = (v_s + eps) / (v_t + eps), held in .05 to 20; running variance := (running variance + eps) r - eps; running mean
    := m_s - (m_t - running mean) sqrt(r), from the teacher's running statistics, so that a second call moves nothing.
    Its input has seen the corrections before it. Static ranges must have been calibrated. Memory: a pass over all
    samples at once. Raises ValueError without samples, for a teacher that has no BatchNorm with statistics and for a
    student that is not its copy; NotFinite, which holds the student, for what is not finite, with the BatchNorms before
    it corrected.
    """
    loop = loop or Loop()
    batch = joined(batches, loop.accelerator.device)
    student.to(loop.accelerator.device).eval()
    answers = answers_of(teacher.to(loop.accelerator.device).eval(), (), batch, loop.accelerator)
    if not answers.norms:
        raise ValueError(
            f"{type(teacher).__name__} has no BatchNorm with running statistics; zsaq.one_pass corrects biases instead"
        )
    with torch.no_grad(), keeping(student), corrected(student, answers, loop.accelerator):
        run_model(student, batch)
    return student


def shift_statistics(
    norm: _BatchNorm, own: tuple[Tensor, Tensor], origin: _BatchNorm, whole: tuple[Tensor, Tensor]
) -> None:
    """Set one BatchNorm's statistics to those of its `origin` in the teacher, moved by variance and mean of what
    reaches it in the student and there."""
    assert norm.running_mean is not None and norm.running_var is not None
    assert origin.running_mean is not None and origin.running_var is not None
    ratio = ((own[0] + norm.eps) / (whole[0] + norm.eps)).nan_to_num(1.0).clamp(*RATIO)  # 0 / 0 without an eps
    mean, var = origin.running_mean.to(norm.running_mean), origin.running_var.to(norm.running_var)
    norm.running_mean.copy_(own[1] - (whole[1] - mean) * ratio.sqrt())
    norm.running_var.copy_(((var + norm.eps) * ratio - norm.eps).clamp_min(0))


def moments(x: Tensor, accelerator: Accelerator) -> tuple[Tensor, Tensor]:
    """Variance and mean of each channel [C] of x [N, C, ...], of all processes' x."""
    var, mean = torch.var_mean(x.float(), [0, *range(2, x.ndim)], correction=0)
    if accelerator.num_processes > 1:
        square, mean = cast(Tensor, accelerator.reduce(torch.stack([var + mean.square(), mean]), "mean"))
        var = square - mean.square()
    return var, mean


def mean_answer(layer: nn.Module, answer: Tensor, accelerator: Accelerator) -> Tensor:
    """The mean [out] of a layer's answers, of all processes."""
    rows = answer.movedim(1, -1) if isinstance(layer, nn.Conv2d) else answer
    mean = rows.float().flatten(0, -2).mean(0)
    return cast(Tensor, accelerator.reduce(mean, "mean")) if accelerator.num_processes > 1 else mean


def joined(batches: Iterable[Batch], device: torch.device) -> Batch:
    """All batches as one. Raises ValueError as `listed` does, and for samples of several sizes."""
    every = listed(batches)
    shapes = {tuple(sorted((key, tuple(value.shape[1:])) for key, value in batch.items())) for batch in every}
    if len(shapes) != 1:
        raise ValueError(
            f"there are {len(every)} batches with samples of {len(shapes)} kinds, such as {list(shapes)[:2]}; give all "
            "of them the same keys and sizes"
        )
    return {key: torch.cat([batch[key] for batch in every]).to(device) for key in every[0]}


def check_finite(name: str, *values: Tensor) -> None:
    if not all(value.isfinite().all() for value in values):
        raise NotFinite(f"what {name} reads or answers is not finite on these images, or too large; look at them")


def has_statistics(module: nn.Module) -> TypeGuard[_BatchNorm]:
    return isinstance(module, _BatchNorm) and module.running_mean is not None and not module.training


def has_bias(layer: QuantLayer) -> bool:
    return isinstance(getattr(layer, "bias", None), Tensor)
