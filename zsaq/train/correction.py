"""What rounding shifts is shifted back: statistics of BatchNorms, or biases of layers that no BatchNorm reads, moved by
what the student's answers differ from the teacher's on the same batch.

Both sides are shown the same, so what synthetic images have of their own cancels.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar, cast, final

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from zsaq.quant.layers import QuantLayer, quant_layers
from zsaq.train.loop import Loop
from zsaq.train.pair import Batch, run_model
from zsaq.train.widening import widened

Model = TypeVar("Model", bound=nn.Module)
RATIO = (0.05, 20.0)  # between which a variance may be scaled


@final
@dataclass
class Answers:
    """Of a teacher to one batch: `norms`, variance and mean [C] of what each BatchNorm reads; `means` [C] of what each
    layer answers whose answer goes to no BatchNorm at once; both by name."""

    norms: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    means: dict[str, Tensor] = field(default_factory=dict)


@torch.no_grad()
def answers_of(teacher: nn.Module, layers: Iterable[str], batch: Batch, accelerator: Accelerator) -> Answers:
    """What the teacher's BatchNorms read, and what those of its `layers` answer that are called."""
    answers, wanted, last = Answers(), set(layers), ("", torch.zeros(0))

    def read(name: str):
        def hook(module: nn.Module, args: tuple[Tensor]) -> None:
            if args[0] is last[1]:
                answers.means.pop(last[0], None)
            answers.norms.setdefault(name, moments(args[0], accelerator))

        return hook

    def answered(name: str):
        def hook(module: nn.Module, args: tuple, answer: Tensor) -> None:
            nonlocal last
            last = name, answer
            answers.means.setdefault(name, mean_answer(module, answer, accelerator))

        return hook

    modules = list(teacher.named_modules())
    handles = [m.register_forward_pre_hook(read(name)) for name, m in modules if has_statistics(m)]
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
    """Inside, the first pass of `student` corrects each BatchNorm and each bias before what comes after it sees it."""
    done = set[nn.Module]()

    def norm(name: str):
        def hook(module: _BatchNorm, args: tuple[Tensor]) -> None:
            if module not in done:
                done.add(module)
                shift_statistics(module, moments(args[0], accelerator), answers.norms[name])

        return hook

    def bias(name: str):
        def hook(module: nn.Module, args: tuple, answer: Tensor) -> Tensor:
            if module in done:
                return answer
            done.add(module)
            missing = answers.means[name] - mean_answer(module, answer, accelerator)
            cast(Tensor, module.bias).add_(missing.to(cast(Tensor, module.bias)))
            return answer + (missing[:, None, None] if isinstance(module, nn.Conv2d) else missing).to(answer)

        return hook

    norms = [(name, m) for name, m in student.named_modules() if has_statistics(m) and name in answers.norms]
    biased = [(name, m) for name, m in quant_layers(student) if name in answers.means and has_bias(m)]
    handles = [m.register_forward_pre_hook(norm(name)) for name, m in norms]
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
    := m_s - (m_t - running mean) sqrt(r). Its input has seen the corrections before it. Static ranges must have been
    calibrated. Memory: a pass over all samples at once. Raises ValueError without batches and for a teacher that has no
    BatchNorm with statistics.
    """
    loop = loop or Loop()
    batch = joined(batches, loop.accelerator.device)
    student.to(loop.accelerator.device).eval()
    answers = answers_of(teacher.to(loop.accelerator.device).eval(), (), batch, loop.accelerator)
    if not answers.norms:
        raise ValueError(
            f"{type(teacher).__name__} has no BatchNorm with running statistics; zsaq.one_pass corrects biases instead"
        )
    with torch.no_grad(), corrected(student, answers, loop.accelerator):
        run_model(student, batch)
    return student


def shift_statistics(norm: _BatchNorm, own: tuple[Tensor, Tensor], whole: tuple[Tensor, Tensor]) -> None:
    """Move one BatchNorm's statistics by variance and mean of what reaches it in the student and in the teacher."""
    assert norm.running_mean is not None and norm.running_var is not None
    ratio = ((own[0] + norm.eps) / (whole[0] + norm.eps)).clamp(*RATIO)
    norm.running_mean.copy_(own[1] - (whole[1] - norm.running_mean) * ratio.sqrt())
    norm.running_var.copy_(((norm.running_var + norm.eps) * ratio - norm.eps).clamp_min(0))


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
    """All batches as one. Raises ValueError without any, and for samples of several sizes."""
    every = list(batches)
    shapes = {tuple((key, value.shape[1:]) for key, value in batch.items()) for batch in every}
    if len(shapes) != 1:
        raise ValueError(
            f"there are {len(every)} batches with samples of {len(shapes)} kinds; give at least one batch, of one kind"
        )
    return {key: torch.cat([batch[key] for batch in every]).to(device) for key in every[0]}


def has_statistics(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.running_mean is not None and not module.training


def has_bias(layer: QuantLayer) -> bool:
    return isinstance(getattr(layer, "bias", None), Tensor)
