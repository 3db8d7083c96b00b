"""Teacher and student side by side on one batch, and what is seen inside them.

Each model runs at most once, and only if somebody looks; once more where `run_model` finds that it has to. Hooks are
put in by a `Capture` that an objective declares and are gone when the forward pass ends, so no two passes can mix.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, final
from weakref import WeakSet

import torch
from torch import Tensor, nn

from zsaq.train.widening import widened

WRITTEN = WeakSet[nn.Module]()  # modules whose answers were seen to be written into behind them
Batch = dict[str, Tensor]  # keyword arguments of forward, and "labels", which no model of ours is shown


def check_batch(batch: Any) -> Batch:
    """It as it is. Raises ValueError for what is no dict of tensors."""
    if not isinstance(batch, Mapping) or not all(isinstance(value, Tensor) for value in batch.values()):
        raise ValueError(
            f"the batches hold a {type(batch).__name__} that is no dict of tensors; give an iterable of them, such "
            'as [{"pixel_values": images}]'
        )
    return batch  # type: ignore[return-value]


def check_batches(batches: Any) -> None:
    """Raises ValueError for what holds no batches."""
    if not isinstance(batches, Iterable):
        raise ValueError(f"batches is {batches!r:.80}; give an iterable of dicts of tensors")


def listed(batches: Iterable[Batch]) -> list[Batch]:
    """All of the batches. Raises ValueError for none, for what is no batch and for batches without a sample."""
    check_batches(batches)
    every = [check_batch(batch) for batch in batches]
    if not any(value.numel() for batch in every for value in batch.values()):
        raise ValueError(f"there are {len(every)} batches with no sample in them; give at least one sample")
    return every


@dataclass(frozen=True)
class Capture:
    """A place to look: modules of a type or for which `where(name, module)` holds, at their "input" or "output"."""

    model: Literal["teacher", "student"]
    where: type | Callable[[str, nn.Module], bool]
    side: Literal["input", "output"] = "output"

    def finds(self, name: str, module: nn.Module) -> bool:
        return isinstance(module, self.where) if isinstance(self.where, type) else self.where(name, module)


@dataclass(frozen=True)
class Out:
    """What a model answered, and for each capture what its modules saw, in order of execution.

    `answer`: logits [B, ...] float, or of a model without a head the states [B, L, d] float of its last layer; then
    `headless` names its class. A seen value is the module and the tensor there (the first of a tuple; the first
    argument of "input"). What a module put out is as it left it, whatever is written into it behind.
    """

    answer: Tensor
    seen: Mapping[Capture, list[tuple[nn.Module, Tensor]]]
    headless: str | None = None

    @property
    def logits(self) -> Tensor:
        """Raises ValueError for a model without a head."""
        if self.headless is not None:
            raise ValueError(f"{self.headless} answers no logits; give a model with a head")
        return self.answer


def run_model(model: nn.Module, batch: Batch, captures: tuple[Capture, ...] = ()) -> Out:
    """One forward pass with captures, two where what a module put out turns out to be written into behind it, of which
    later passes keep a copy; floats go in as the model's own dtype.

    Raises ValueError if a capture finds no module, if the answer has neither logits nor states of the last layer, and
    for pixel_values that are no floats.
    """
    if isinstance(pixels := batch.get("pixel_values"), Tensor) and not pixels.is_floating_point():
        raise ValueError(
            f"pixel_values are {pixels.dtype}; give floats, scaled and normalised as the model's image processor does"
        )
    seen: dict[Capture, list[tuple[nn.Module, Tensor]]] = {capture: [] for capture in captures}
    handles, versions = [], list[tuple[nn.Module, Tensor, int]]()
    bare = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    try:
        for capture in seen:
            modules = [module for name, module in bare.named_modules() if capture.finds(name, module)]
            if not modules:
                raise ValueError(
                    f"a capture on the {capture.model} at {capture.where} finds no module in {type(bare).__name__}"
                )
            for module in modules:
                handles.append(_listen(module, capture, seen[capture], versions))
        dtype = next((p.dtype for p in bare.parameters() if p.is_floating_point()), torch.float32)
        shown = {k: v for k, v in batch.items() if k != "labels"}
        floats = {k: v.to(dtype) for k, v in shown.items() if isinstance(v, Tensor) and v.is_floating_point()}
        answer = model(**shown | floats)
    finally:
        for handle in handles:
            handle.remove()
    if late := {module for module, value, version in versions if value._version != version}:
        WRITTEN.update(late)
        return run_model(model, batch, captures)
    if isinstance(answer, Tensor):
        return Out(answer.float(), seen)
    if not isinstance(answer, Mapping):
        raise ValueError(f"{type(bare).__name__} answers a {type(answer).__name__}; give a model that answers logits")
    if (logits := answer.get("logits")) is not None:
        return Out(logits.float(), seen)
    if (states := answer.get("last_hidden_state")) is None:
        raise ValueError(f"{type(bare).__name__} answers no logits; give a model with a head")
    return Out(states.float(), seen, type(bare).__name__)


def first_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """What a module was called with, by place or by name: its first argument."""
    return args[0] if args else next(iter(kwargs.values()))


def _listen(
    module: nn.Module, capture: Capture, values: list[tuple[nn.Module, Tensor]],
    versions: list[tuple[nn.Module, Tensor, int]],
):  # fmt: skip
    def at_input(module, args, kwargs) -> None:
        values.append((module, first_input(args, kwargs)))

    def at_output(module, args, output):
        first = output[0] if isinstance(output, tuple) else output
        values.append((module, first))
        if not isinstance(first, Tensor):
            return output
        if module not in WRITTEN:
            if not first.is_inference():  # those keep no versions
                versions.append((module, first, first._version))
            return output
        if not isinstance(output, tuple):
            return first.clone()
        copied = (first.clone(), *output[1:])
        return getattr(output, "_make", tuple)(copied)

    if capture.side == "input":
        return module.register_forward_pre_hook(at_input, with_kwargs=True)
    return module.register_forward_hook(at_output)


@final
class Pair:
    """One batch before both models. The teacher runs without gradients unless an input of the batch wants one."""

    def __init__(
        self, teacher: nn.Module, student: nn.Module, batch: Batch, captures: tuple[Capture, ...] = ()
    ) -> None:
        self.models = (teacher, student)
        self.batch, self.captures = batch, captures

    @cached_property
    def teacher(self) -> Out:
        wanted = torch.is_grad_enabled() and any(v.requires_grad for v in self.batch.values())
        with torch.set_grad_enabled(wanted), widened(self.models[0]):
            return run_model(self.models[0], self.batch, tuple(t for t in self.captures if t.model == "teacher"))

    @cached_property
    def student(self) -> Out:
        return run_model(self.models[1], self.batch, tuple(t for t in self.captures if t.model == "student"))

    def again(self) -> "Pair":
        """The student anew, the teacher's answer kept: SAM's second pass."""
        pair = Pair(*self.models, self.batch, self.captures)
        if "teacher" in vars(self):
            vars(pair)["teacher"] = self.teacher
        return pair

    def at(self, **inputs: Tensor) -> "Pair":
        """The same models and captures on other inputs."""
        return Pair(*self.models, {**self.batch, **inputs}, self.captures)

    @property
    def mask(self) -> Tensor:
        """Which positions count: [B, ...] bool, shaped like the logits without their last dimension."""
        shape = self.teacher.logits.shape[:-1]
        mask = self.batch.get("attention_mask")
        if len(shape) < 2 or mask is None:
            return torch.ones(shape, dtype=torch.bool, device=self.teacher.logits.device)
        return mask.bool()
