"""What a range is, and the one that is taken anew from every tensor that passes."""

from abc import ABC, abstractmethod
from typing import final

from torch import Tensor, nn

from zsaq.quant.bounds import from_bounds, in_format
from zsaq.quant.grid import Grid
from zsaq.quant.observer import EMAMinMax


class Range(nn.Module, ABC):
    """Chooses scale and zero for tensors seen as groups [..., group], and says what else it is.

    `static`: one scale and zero for whole tensors, which `zsaq.calibrate` fills; `kept`: scale and zero do not follow
    the tensor, so that its rows may be rounded one by one, and weights be moved on a grid that stays; `observing`: who
    looks at what passes, unrounded, instead of it being rounded. What a range holds moves with the model and is never
    cast with it, as half precision would move the whole grid.
    """

    static = False
    kept = False
    observing: EMAMinMax | None = None

    @abstractmethod
    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor | float]:
        """Scale [..., 1], float32 as files hold it, and zero: [..., 1] if asymmetric, else the grid's own number."""

    def covers(self, grid: Grid) -> bool:
        """Whether no entry lies outside, but for the rounding of an integer zero: then every gradient passes."""
        return False

    def trained(self) -> nn.Parameter | None:
        """The scale, where it is learned with the weights."""
        return None

    def weigh(self, x: Tensor, grid: Grid, importance: Tensor) -> None:
        """Search anew, where scale and zero were searched: for errors that count by `importance`, of x's shape."""

    def check(self) -> None:
        """Raises ValueError for a scale and zero that no run leaves. Waits for the device."""

    def unit_of(self, scale: Tensor, grid: Grid) -> Tensor | None:
        """The float times which all scales of a tensor stand, if their format has one."""
        return grid.scaling.unit(scale)

    def _apply(self, fn, recurse: bool = True):
        held = [(name, each.data) for name, each in (*self.named_parameters(), *self.named_buffers())]
        super()._apply(fn, recurse)
        for name, before in held:
            if (now := getattr(self, name)).dtype != before.dtype:
                now.data = before.to(now.device)
        return self


@final
class MinMax(Range):
    """The extremes of what is seen now: dynamic for activations, abs-max for weights. A format of scales may round
    below them."""

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor | float]:
        x = x.detach()
        if grid.symmetric:
            return in_format(x.abs().amax(-1, keepdim=True).float(), grid), grid.zero
        return from_bounds(x.amin(-1, keepdim=True).float(), x.amax(-1, keepdim=True).float(), grid)

    def covers(self, grid: Grid) -> bool:
        return grid.scales == "float32" and (not grid.symmetric or grid.amplitude <= grid.values[-1])
