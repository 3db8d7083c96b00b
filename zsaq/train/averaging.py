"""The student leaves as the mean of its last steps."""

from typing import Any, final

import torch
from torch import Tensor

from zsaq.train.optim import Closure, Wrapper


@final
class Averaged(Wrapper):
    """Steps of `base`; with step `last` its parameters become their mean over the steps `first` to `last` (Polyak and
    Juditsky 1992; Izmailov et al. 2018, arXiv 1803.05407).

    Quantized layers are averaged in their latent weights and learned scales, and rounded anew from there. What single
    batches moved and others moved back is gone. Memory: a copy of every trained parameter from step `first` on. Raises
    ValueError for steps that cannot be.
    """

    def __init__(self, base: torch.optim.Optimizer | Wrapper, first: int, last: int) -> None:
        super().__init__(base)
        if not 1 <= first <= last:
            raise ValueError(f"first is {first}, last {last}; give 1 <= first <= last")
        self.first, self.last, self.count = first, last, 0
        self.means: list[Tensor] = []

    @property
    def trained(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def step(self, closure: Closure | None = None) -> Tensor | None:
        loss = self.base.step(closure)  # pyright: ignore[reportCallIssue, reportArgumentType]
        self.count += 1
        with torch.no_grad():
            if self.count == self.first:
                self.means = [p.detach().clone() for p in self.trained]
            elif self.first < self.count <= self.last:
                torch._foreach_lerp_(self.means, self.trained, 1 / (self.count - self.first + 1))
            if self.count == self.last:
                torch._foreach_copy_(self.trained, self.means)
                self.means = []
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"base": super().state_dict(), "count": self.count, "means": self.means}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict["base"])
        self.count = state_dict["count"]
        self.means = [mean.to(p) for mean, p in zip(state_dict["means"], self.trained, strict=False)]
