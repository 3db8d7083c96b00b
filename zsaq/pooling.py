"""From the states of a text's tokens to one vector, as sentence-transformers does it (Reimers and Gurevych 2019, arXiv
1908.10084)."""

from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor
from torch.nn import functional as F

Mode = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]


@final
@dataclass(frozen=True)
class Pooling:
    """What a text's vector is made of: its `modes` side by side, in that order, and at unit length if `normalized`.

    "cls" and "lasttoken": the first and the last token; "mean_sqrt_len_tokens": the sum over the root of the length;
    "weightedmean": token n counts n times.
    """

    modes: tuple[Mode, ...] = ("mean",)
    normalized: bool = False

    def __call__(self, states: Tensor, mask: Tensor | None = None) -> Tensor:
        """States [B, L, d] -> [B, d * modes] float. `mask` [B, L]: which positions count; None for all."""
        states = states.float()
        mask = torch.ones(states.shape[:2], device=states.device) if mask is None else mask.to(states)
        pooled = torch.cat([pool(mode, states, mask) for mode in self.modes], -1)
        return F.normalize(pooled, dim=-1) if self.normalized else pooled

    def __str__(self) -> str:
        return " and ".join(self.modes) + (", at unit length" if self.normalized else "")


def pool(mode: Mode, states: Tensor, mask: Tensor) -> Tensor:
    """One vector [B, d] a row, of states [B, L, d] where mask [B, L] float is 1."""
    row, begin = torch.arange(len(states), device=states.device), mask.argmax(1)
    if mode == "cls":
        return states[row, begin]
    if mode == "lasttoken":
        return states[row, mask.shape[1] - 1 - mask.flip(1).argmax(1)]
    if mode == "max":
        return states.masked_fill(mask[..., None] == 0, -torch.inf).amax(1)
    if mode == "weightedmean":
        mask = mask * (torch.arange(1, mask.shape[1] + 1, device=mask.device) - begin[:, None])
    size = mask.sum(1, keepdim=True).clamp_min(1e-9)
    return (states * mask[..., None]).sum(1) / (size.sqrt() if mode == "mean_sqrt_len_tokens" else size)
