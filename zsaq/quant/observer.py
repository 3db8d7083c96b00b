"""What looks at activations, to find a static range."""

from typing import final

import torch
import torch.distributed as dist
from torch import Tensor


@final
class EMAMinMax:
    """Observes: exponential means of the extremes of what it sees, corrected for their start when read, never fed back.

    With momentum b and t updates the read value is m / (1 - b^t), as in Adam. `lo`, `hi`: m, [1, 1] float32. Raises
    ValueError for a momentum that is not in [0, 1).
    """

    def __init__(self, momentum: float = 0.95) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum!r}; give at least 0 and less than 1")
        self.momentum, self.updates = momentum, 0
        # With a device of its own: a model is loaded inside torch.device("meta"), and this is in no file.
        self.lo, self.hi = torch.zeros(1, 1, device="cpu"), torch.zeros(1, 1, device="cpu")
        self.keep()

    def keep(self) -> None:
        """What was seen until now is what `restore` goes back to."""
        self.kept = self.updates, self.lo, self.hi

    def restore(self) -> None:
        """As at the last `keep`, or at the start."""
        self.updates, self.lo, self.hi = self.kept

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """One update with x [1, n], and with what the other processes see at the same time."""
        lo, hi = x.amin(-1, keepdim=True).float(), x.amax(-1, keepdim=True).float()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(lo, dist.ReduceOp.MIN)
            dist.all_reduce(hi, dist.ReduceOp.MAX)
        self.lo = self.lo.to(lo.device).lerp(lo, 1 - self.momentum)
        self.hi = self.hi.to(hi.device).lerp(hi, 1 - self.momentum)
        self.updates += 1

    def bounds(self) -> tuple[Tensor, Tensor]:
        """The corrected means of the lowest and the highest entries, [1, 1] each."""
        assert self.updates
        share = 1 - self.momentum**self.updates
        return self.lo / share, self.hi / share
