"""Ranges choose scale and zero. They see a tensor as groups: shape [..., group], one scale for each group."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, final

import torch
from torch import Tensor, nn

from zsaq.quant.codes import round_to_grid, values_of, wide
from zsaq.quant.grid import Grid
from zsaq.quant.observer import EMAMinMax

TINY = 1e-8  # smallest scale: a group of zeros stays zeros
LEAST: Final = torch.tensor(TINY, dtype=torch.float32, device="cpu").item()  # as float32 holds it: a little less


def floored(scale: Tensor) -> Tensor:
    """`scale`, of float32 at least, and at least TINY."""
    return scale.clamp_min(TINY)


def from_bounds(lo: Tensor, hi: Tensor, grid: Grid) -> tuple[Tensor, Tensor | float]:
    """Scale and zero that cover [lo, hi]; zero is always on the grid."""
    lo, hi = wide(lo).clamp(max=0), wide(hi).clamp(min=0)
    if grid.symmetric:
        return floored(torch.maximum(-lo, hi) / grid.amplitude), grid.zero
    scale = floored((hi - lo) / grid.amplitude)
    return scale, torch.round(-lo / scale).clamp_(grid.low, grid.high)


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
        """Scale [..., 1], float32 at least, and zero: [..., 1] if asymmetric, else the grid's own number."""

    def covers(self, grid: Grid) -> bool:
        """Whether no entry lies outside, but for the rounding of an integer zero: then every gradient passes."""
        return False

    def trained(self) -> nn.Parameter | None:
        """The scale, where it is learned with the weights."""
        return None

    def check(self) -> None:
        """Raises ValueError for a scale and zero that no run leaves. Waits for the device."""

    def _apply(self, fn, recurse: bool = True):
        held = [(name, each.data) for name, each in (*self.named_parameters(), *self.named_buffers())]
        super()._apply(fn, recurse)
        for name, before in held:
            if (now := getattr(self, name)).dtype != before.dtype:
                now.data = before.to(now.device)
        return self


@final
class MinMax(Range):
    """The extremes of what is seen now: dynamic for activations, abs-max for weights."""

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor | float]:
        x = x.detach()
        if grid.symmetric:
            return floored(wide(x.abs().amax(-1, keepdim=True)) / grid.amplitude), grid.zero
        return from_bounds(x.amin(-1, keepdim=True), x.amax(-1, keepdim=True), grid)

    def covers(self, grid: Grid) -> bool:
        return not grid.symmetric or grid.amplitude <= grid.values[-1]


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


def input_range(grid: Grid) -> Range:
    """Dynamic for tokens and groups; static for whole tensors, which `zsaq.calibrate` must fill."""
    return Static(grid) if grid.per == "tensor" else MinMax()


@torch.no_grad()
def search(
    x: Tensor, grid: Grid, power: float = 2.0, factors: Sequence[float] | None = None
) -> tuple[Tensor, Tensor | float]:
    """The min-max scale times the factor that minimises sum |error|^power, for each group of x [..., group]."""
    widest, zero = MinMax()(x, grid)
    if factors is None:
        low = grid.bits < 5  # a row with outliers needs a small share of its maximum at 2 bits
        factors = torch.linspace(1.0, 0.15, 64).tolist() if low else torch.linspace(1.0, 0.85, 12).tolist()
    rows = max(1, 2**16 // x.shape[-1])  # chunks stay in the processor's cache
    best = []
    for part, most, offset in zip(
        x.flatten(0, -2).split(rows),
        widest.flatten(0, -2).split(rows),
        (zero if isinstance(zero, Tensor) else torch.full_like(widest, zero)).flatten(0, -2).split(rows),
        strict=True,
    ):
        scale, error = most.clone(), torch.full_like(most, torch.inf)
        for factor in factors:
            tried = (most * factor).clamp_min_(TINY)
            miss = values_of(round_to_grid(part, tried, offset, grid), offset, grid).mul_(tried).sub_(part)
            miss = (miss.square_() if power == 2 else miss.abs_().pow_(power)).sum(-1, keepdim=True)
            scale, error = torch.where(miss < error, tried, scale), torch.minimum(miss, error)
        best.append(scale)
    return torch.cat(best).view_as(widest), zero


@final
class MSEOptimal(Range):
    """Scale and zero found by search on the tensor given at the start, then kept, or trained if `learned` (LSQ)."""

    scale: Tensor
    zero: Tensor
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
        scale, zero = search(x.detach().float(), grid, power, factors)
        if learned:
            self.scale = nn.Parameter(scale)
        else:
            self.register_buffer("scale", scale)
        self.register_buffer(
            "zero", torch.as_tensor(zero, dtype=scale.dtype, device=scale.device).expand_as(scale).clone()
        )

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor | float]:
        return floored(self.scale), grid.zero if grid.symmetric else self.zero

    def trained(self) -> nn.Parameter | None:
        return self.scale if isinstance(self.scale, nn.Parameter) else None


RANGES: Final[dict[str, Callable[[Tensor, Grid], Range]]] = {
    "minmax": lambda x, grid: MinMax(),
    "searched": MSEOptimal,
    "learned": partial(MSEOptimal, learned=True),
}
"""What makes the range of a weight, seen as groups, by the name that `QuantConfig.ranges` has for it."""
