"""What a block that learns falls back on: what it was, if it ends no nearer to the teacher's than it began."""

from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor

from zsaq.train.logging import StepLog, say


@final
class Fallback:
    """The values of a block's `parameters` before they learn, and its `error` then, over all samples and rounded.

    In few steps, at rates that let few steps get anywhere, a block that was nearly exact ends further away: at 8 bits
    most do (MobileNetV2, 40 steps: KL .43, falling back .04; recipes/LOG.md). The samples are those that it learns
    on, so no other data is read.
    """

    def __init__(self, block: str, parameters: Sequence[Tensor], error: Callable[[], float]) -> None:
        self.block, self.parameters, self.error = block, parameters, error
        self.values, self.began = [each.detach().clone() for each in parameters], error()

    @torch.no_grad()
    def settle(self) -> None:
        """Keep what was learned if the error fell, else take back what was there before, and say so."""
        ended, log = self.error(), StepLog.running[-1]
        if ended < self.began or ended == 0:
            return
        for parameter, value in zip(self.parameters, self.values, strict=True):
            parameter.copy_(value)
        if log.speaks:
            what = f"its error {self.began:.3g} became {ended:.3g}"
            say(f"{log.stage}, block {self.block}: {what}, so it is rounded as it began")
