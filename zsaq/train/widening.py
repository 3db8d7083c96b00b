"""A model that is kept in 16 bits and computes in float32, to the bit as its copy in float32 would: its tensors are
widened where it runs, and narrowed behind it, which loses nothing, as they came from there."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from weakref import WeakSet

import torch
from torch import nn

HALVES: Final = (torch.float16, torch.bfloat16)
NARROW: Final[WeakSet[nn.Module]] = WeakSet()


def keep_narrow(model: nn.Module) -> None:
    """From now on `widened` widens it; others compute in the dtype that they have."""
    NARROW.add(model)


def is_narrow(model: nn.Module) -> bool:
    return model in NARROW


@contextmanager
def released(model: nn.Module) -> Iterator[None]:
    """After the block it is as any other model."""
    try:
        yield
    finally:
        NARROW.discard(model)


@contextmanager
def widened(*models: nn.Module) -> Iterator[None]:
    """Inside, the models of `keep_narrow` are in float32; others are as they are. Their tensors must not be changed,
    and what takes a gradient through them has to be done inside."""
    held = [t for m in models if is_narrow(m) for t in (*m.parameters(), *m.buffers()) if t.dtype in HALVES]
    narrow = {id(tensor): (tensor, tensor.dtype) for tensor in held}.values()
    try:
        for tensor, _ in narrow:
            tensor.data = tensor.data.float()
        yield
    finally:
        for tensor, dtype in narrow:
            tensor.data = tensor.data.to(dtype)
