"""Optimizers around an optimizer instance: they see gradients and weights, and own nothing."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, final

import torch
from torch import Tensor, nn

from zsaq.quant.sharded import alike, total_norm

Closure = Callable[[], Tensor]
NoSync = Callable[[], AbstractContextManager[Any]]


class NotFinite(ValueError):
    """A loss, a gradient or an answer that is not finite; no step was taken.

    `student`, where the trainer has it in hand, has the parameters of the last good step: save what is worth saving.
    """

    student: nn.Module | None = None


@contextmanager
def keeping(student: nn.Module) -> Iterator[None]:
    """Inside, whatever is not finite (a source, an adversary, a block) leaves with the student as it is then."""
    try:
        yield
    except NotFinite as error:
        if error.student is None:
            error.student = student
        raise


def adamw(params: Iterable[Any], lr: float, eight_bit: bool = False) -> torch.optim.Optimizer:
    """AdamW without decay on parameters or groups of them; its states in 8 bits through bitsandbytes if asked.

    Raises ValueError if bitsandbytes is asked for and not installed.
    """
    if not eight_bit:
        return torch.optim.AdamW(params, lr, weight_decay=0.0)
    try:
        from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError('8-bit AdamW needs bitsandbytes: pip install "zsaq[bnb]", or leave eight_bit off') from None
    return AdamW8bit(params, lr, weight_decay=0.0)


class Wrapper(ABC):
    """An optimizer around `base` that takes a closure; groups, state and checkpoints are the base's.

    A closure zeroes the gradients, runs forward and backward over the whole accumulation window and returns the
    detached loss (of several processes the mean, where it is to be logged). `no_sync` makes contexts in which gradients
    stay on their process (DistributedDataParallel's). `together`: processes share each batch, so that what they look at
    on their own has to be averaged too.
    """

    together = False

    def __init__(self, base: "torch.optim.Optimizer | Wrapper") -> None:
        if not isinstance(base, torch.optim.Optimizer | Wrapper):
            raise ValueError(f"base is {base!r}; give an optimizer instance, such as torch.optim.AdamW(parameters)")
        self.base = base
        self._no_sync: NoSync = nullcontext

    @property
    def no_sync(self) -> NoSync:
        return self._no_sync

    @no_sync.setter
    def no_sync(self, no_sync: NoSync) -> None:
        self._no_sync = no_sync
        if isinstance(self.base, Wrapper):
            self.base.no_sync = no_sync

    def nested(self) -> Iterator["Wrapper"]:
        """Itself, and the wrappers inside it."""
        yield self
        if isinstance(self.base, Wrapper):
            yield from self.base.nested()

    @property
    def innermost(self) -> torch.optim.Optimizer:
        """The torch optimizer at the bottom, for learning rate schedulers."""
        return self.base.innermost if isinstance(self.base, Wrapper) else self.base

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.base.param_groups

    @property
    def state(self) -> Any:
        return self.base.state

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.base.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.base.load_state_dict(state_dict)

    @abstractmethod
    def step(self, closure: Closure | None = None) -> Tensor | None:
        """One step; the closure's loss at the weights as they were, a detached scalar."""

    def diagnostics(self) -> dict[str, float]:
        """What was last measured, by name, the base's included. Waits for the device."""
        return self.base.diagnostics() if isinstance(self.base, Wrapper) else {}


@final
class Clip(Wrapper):
    """Steps with the gradient scaled down to a global 2-norm of at most `max_norm`; `norm` is the last before that.

    Raises NotFinite, a ValueError, and takes no step, if the norm is not finite."""

    def __init__(self, base: torch.optim.Optimizer | Wrapper, max_norm: float) -> None:
        super().__init__(base)
        if not max_norm > 0:
            raise ValueError(f"max_norm is {max_norm!r}; give a positive number")
        self.max_norm, self.norm = max_norm, math.nan

    def step(self, closure: Closure | None = None) -> Tensor | None:
        loss = None if closure is None else look(closure)
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = total_norm([p.grad for p in params])
        self.norm = float(norm)
        if not math.isfinite(self.norm):
            raise NotFinite(f"the gradient's norm is {self.norm}; no step was taken. Lower the learning rate")
        for group in alike(params):
            nn.utils.clip_grads_with_norm_(group, self.max_norm, norm)
        self.base.step()
        return loss

    def diagnostics(self) -> dict[str, float]:
        return super().diagnostics() | {"norm": self.norm}


def look(closure: Closure) -> Tensor:
    with torch.enable_grad():
        return closure().detach()
