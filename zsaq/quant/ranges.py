"""Ranges choose scale and zero. They see a tensor as groups: shape [..., group], one scale for each group."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, final

import torch
from torch import Tensor, nn

from zsaq.quant.bounds import LEAST, apart, floored, from_bounds
from zsaq.quant.codes import round_to_grid, values_of
from zsaq.quant.dynamic import MinMax, Range
from zsaq.quant.grid import Grid
from zsaq.quant.observer import EMAMinMax
from zsaq.quant.scales import Straight


@final
class Static(Range):
    """One scale and zero for whole tensors, frozen: what is stored, checked and computed with.

    `scale`, `zero`: [1, 1] float32. `observer` collects what `zsaq.calibrate` shows it, also over several calls; the
    end of each freezes the range anew. A call that fails leaves nothing in it: the next goes on from the last `freeze`.
    Reading raises ValueError before the first.
    """

    scale: Tensor
    zero: Tensor
    static = kept = True

    def __init__(self, grid: Grid, observer: EMAMinMax | None = None) -> None:
        super().__init__()
        assert grid.per == "tensor"
        self.grid, self.observer, self.checked = grid, observer or EMAMinMax(), False
        self.heard: EMAMinMax | None = None
        self.register_buffer("scale", torch.zeros(1, 1, dtype=torch.float32))
        self.register_buffer("zero", torch.zeros(1, 1, dtype=torch.float32))

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        self.checked = False
        super()._load_from_state_dict(*args, **kwargs)

    @property
    def observing(self) -> EMAMinMax | None:  # type: ignore[override]
        """Who listens. Whoever begins drops what a calibration that failed left, back to the last `freeze`."""
        return self.heard

    @observing.setter
    def observing(self, observer: EMAMinMax | None) -> None:
        if observer is not None:
            observer.restore()
        self.heard = observer

    def check_seen(self) -> None:
        """Raises ValueError, with range and observer as the last `freeze` left them, for what `freeze` cannot hold."""
        scale, zero = from_bounds(*self.observer.bounds(), self.grid)
        try:
            self.refuse(float(scale), float(zero))
        except ValueError:
            self.observer.restore()
            raise

    def freeze(self) -> None:
        """From now on what the observer has seen is the range. Raises ValueError as `check_seen` does."""
        self.check_seen()
        self.hold(*self.observer.bounds())
        self.observer.keep()

    @torch.no_grad()
    def hold(self, lo: Tensor, hi: Tensor) -> None:
        """From now on the range is [lo, hi], [1, 1] each, until the next `zsaq.calibrate`.

        Raises ValueError, and leaves the range as it is, for bounds that are not finite. Waits for the device.
        """
        scale, zero = from_bounds(lo, hi, self.grid)
        self.refuse(float(scale), float(zero))
        self.scale.copy_(scale)
        self.zero.copy_(torch.as_tensor(zero))
        self.checked = True

    def forget(self) -> None:
        """As if nothing had been seen."""
        self.observer, self.checked = EMAMinMax(self.observer.momentum), False
        self.scale.zero_()

    def check(self) -> None:
        scale, zero = float(self.scale), float(self.zero)
        if scale == 0:
            raise ValueError("the static range has seen nothing: run zsaq.calibrate(student, batches) first")
        self.refuse(scale, zero)
        self.checked = True

    def refuse(self, scale: float, zero: float) -> None:
        """Raises ValueError for a scale and zero that no finite bounds give."""
        grid = self.grid
        low, high = (grid.zero, grid.zero) if grid.symmetric else (grid.low, grid.high)
        if not (LEAST <= scale < torch.inf and low <= zero <= high and (grid.symmetric or zero.is_integer())):
            raise ValueError(
                f"the static range has scale {scale} and zero {zero}; it must be finite and not empty, with a zero "
                f"from {low} to {high}: run zsaq.calibrate(student, batches) on other batches"
            )

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor | float]:
        if not self.checked:  # read from a file: looked at once, not in every forward
            self.check()
        return floored(self.scale), grid.zero if grid.symmetric else self.zero


def static_ranges(model: nn.Module) -> list[Static]:
    """Those of the model, each once."""
    return [module for module in model.modules() if isinstance(module, Static)]


def known(model: nn.Module) -> bool:
    """Whether there are static ranges and each is filled; waits for the device."""
    ranges = static_ranges(model)
    return bool(ranges) and all(float(each.scale) != 0 for each in ranges)


def input_range(grid: Grid) -> Range:
    """Dynamic for tokens and groups; static for whole tensors, which `zsaq.calibrate` must fill."""
    return Static(grid) if grid.per == "tensor" else MinMax()


@torch.no_grad()
def search(
    x: Tensor,
    grid: Grid,
    power: float = 2.0,
    factors: Sequence[float] | None = None,
    importance: Tensor | None = None,
) -> tuple[Tensor, Tensor | float]:
    """The min-max scale times the factor that minimises sum |error|^power, for each group of x [..., group]. Scales
    are tried as their format holds them; where that has few, all of those about the first are tried.

    With `importance`, of x's shape and not negative: sum importance * |error|^power, and a lopsided grid is tried the
    other way round too, by a negative scale.
    """
    widest, zero = MinMax()(x, grid)
    form, unit = grid.scaling, grid.scaling.unit(widest)
    factors = form.factors or factors
    turns = importance is not None and grid.lopsided
    if factors is None:  # a row with outliers needs a small share of its maximum at 2 bits
        least, count = (0.15, 64) if grid.bits < 5 else (0.85, 12)
        factors = torch.linspace(1.0, least, count // 2 if turns else count).tolist()
    if turns:
        factors = [*factors, *(-factor for factor in factors)]
    rows = max(1, 2**16 // x.shape[-1])  # chunks stay in the processor's cache
    offsets = zero if isinstance(zero, Tensor) else torch.full_like(widest, zero)
    chunks = [each.flatten(0, -2).split(rows) for each in (x, widest, offsets)]
    shares = [None] * len(chunks[0]) if importance is None else importance.flatten(0, -2).split(rows)
    best = []
    for part, most, offset, share in zip(*chunks, shares, strict=True):
        scale, error = most.clone(), torch.full_like(most, torch.inf)
        for factor in factors:
            tried = form.held(apart(most * factor), unit)
            miss = values_of(round_to_grid(part, tried, offset, grid), offset, grid).mul_(tried).sub_(part)
            miss = miss.square_() if power == 2 else miss.abs_().pow_(power)
            miss = (miss if share is None else miss.mul_(share)).sum(-1, keepdim=True)
            scale, error = torch.where(miss < error, tried, scale), torch.minimum(miss, error)
        best.append(scale)
    return torch.cat(best).view_as(widest), zero


@final
class MSEOptimal(Range):
    """Scale and zero found by search on the tensor given at the start, then kept, or trained if `learned` (LSQ).

    `unit` [1]: the float times which the scales stand, for a format that has one; it stays.
    """

    scale: Tensor
    zero: Tensor
    unit: Tensor
    kept = True

    def __init__(
        self,
        x: Tensor,
        grid: Grid,
        learned: bool = False,
        power: float = 2.0,
        factors: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        x = x.detach().float()
        scale, zero = search(x, grid, power, factors)
        if grid.scaling.united:
            self.register_buffer("unit", grid.scaling.unit(MinMax()(x, grid)[0]))
        if learned:
            self.scale = nn.Parameter(scale)
        else:
            self.register_buffer("scale", scale)
        self.register_buffer(
            "zero", torch.as_tensor(zero, dtype=scale.dtype, device=scale.device).expand_as(scale).clone()
        )

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor | float]:
        return self.held(self.scale, grid), grid.zero if grid.symmetric else self.zero

    def held(self, scale: Tensor, grid: Grid) -> Tensor:
        """Such scales as their format holds them; the gradient passes."""
        scale, unit = (apart if grid.lopsided else floored)(scale), self._buffers.get("unit")
        return scale if grid.scales == "float32" else Straight.apply(scale, unit, grid.scaling)

    def unit_of(self, scale: Tensor, grid: Grid) -> Tensor | None:
        return self._buffers.get("unit")

    def trained(self) -> nn.Parameter | None:
        return self.scale if isinstance(self.scale, nn.Parameter) else None

    @torch.no_grad()
    def weigh(self, x: Tensor, grid: Grid, importance: Tensor) -> None:
        now = grid.scaling.unit(MinMax()(x.float(), grid)[0])  # of the rows as they are, as the search takes it
        if (unit := self._buffers.get("unit")) is not None and now is not None:
            unit.copy_(now)
        scale, zero = search(x.float(), grid, importance=importance.float())
        self.scale.copy_(scale)
        self.zero.copy_(torch.as_tensor(zero))


RANGES: Final[dict[str, Callable[..., Range]]] = {
    "minmax": lambda x, grid, **search: MinMax(),
    "searched": MSEOptimal,
    "learned": partial(MSEOptimal, learned=True),
}
"""What makes the range of a weight, seen as groups, by the name that `QuantConfig.ranges` has for it."""
