"""What computes as which layer: the kinds that have a quantized form, and the subclasses that answer as they do."""

from functools import cache
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D


class ExpertLinear(nn.Module):
    """The linear layers of many experts as one: `weight` [experts, out, in]."""

    weight: Tensor

    def __init__(self, weight: nn.Parameter | None) -> None:
        super().__init__()
        self.register_parameter("weight", weight)

    def forward(self, rows: Tensor, counts: list[int]) -> Tensor:
        return by_expert(rows, self.weight, counts)


def by_expert(rows: Tensor, weights: Tensor, counts: list[int]) -> Tensor:
    """Rows [n, in], sorted by expert, times the matrices [experts, out, in]; `counts`: the rows of each expert."""
    parts = zip(rows.split(counts), weights, strict=True)
    return torch.cat([F.linear(part, weight) for part, weight in parts if len(part)])


KINDS: Final = (nn.Linear, Conv1D, nn.Conv2d, nn.Embedding, ExpertLinear)
COMPUTES: Final = ("forward", "_conv_forward", "__call__", "__getattr__", "weight", "bias")  # what an answer comes from
ALIKE: Final = (
    "transformers.models.falcon.modeling_falcon.FalconLinear",
)  # with a forward of their own, to one effect
SCALES: Final = {"super", "forward", "embed_scale", "to", "weight", "dtype"}  # all that a scaled table's forward names


def kind_of(module: nn.Module) -> type[nn.Module] | None:
    """Which of `KINDS` the module computes as; None for what has no quantized form.

    A subclass counts if its forward is its base's, and so does a token table that multiplies what it looks up (Gemma's,
    BART's). What nn.MultiheadAttention holds does not: it reads the weight past the forward.
    """
    kind = next((kind for kind in KINDS if isinstance(module, kind)), None)
    known = kind is not None and isinstance(module._parameters.get("weight"), nn.Parameter)
    return kind if known and computes_as(type(module), kind) else None


@cache
def computes_as(own: type, kind: type) -> bool:
    """Whether the class answers as its base `kind` does, up to a factor of a table."""
    if issubclass(own, NonDynamicallyQuantizableLinear):
        return False
    changed = {name for name in COMPUTES if getattr(own, name, None) is not getattr(kind, name, None)}
    alike = f"{own.__module__}.{own.__qualname__}" in ALIKE or (kind is nn.Embedding and scales(own))
    return not changed or (alike and changed == {"forward"})


def scales(own: type) -> bool:
    """Whether all that a table's own forward does is to multiply what its base looks up by `embed_scale`."""
    code: Any = getattr(vars(own).get("forward"), "__code__", None)
    return (
        code is not None
        and "embed_scale" in code.co_names
        and set(code.co_names) <= SCALES
        and "__class__" in code.co_freevars
    )


class Scaled(nn.Module):
    """A table that multiplies what it looks up. Never constructed: see `form_of`."""

    def forward(self, input: Tensor) -> Tensor:
        rows = super().forward(input)  # type: ignore[misc]  # the table's
        factor = factor_of(self)
        if isinstance(self.embed_scale, Tensor):  # it is cast with the rows
            return rows * rows.new_tensor(factor, dtype=torch.float32).to(rows.dtype)
        return rows * factor


def factor_of(table: nn.Module) -> float:
    """By what a table multiplies what it looks up. A tensor of it is in no file: its number stands beside it."""
    factor: Any = getattr(table, "scalar_embed_scale", getattr(table, "embed_scale", 1.0))
    return float(factor) if isinstance(table, Scaled) else 1.0


def refill(table: nn.Module) -> None:
    """Give the tensor of a table's factor, which is in no file, the number that stands beside it."""
    held = getattr(table, "embed_scale", None)
    if isinstance(table, Scaled) and isinstance(held, Tensor) and hasattr(table, "scalar_embed_scale"):
        held.fill_(factor_of(table))


@cache
def form_of(form: type, own: type) -> type:
    """The class that a layer of class `own` gets for its quantized `form`: what else a subclass has stays in it."""
    if own in KINDS:
        return form
    return type(form.__name__, (Scaled, form, own) if scales(own) else (form, own), {})
