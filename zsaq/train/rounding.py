"""What rounding learns while a block is reconstructed: bits, scales and steps. `harden` makes it ordinary again."""

from collections.abc import Callable
from typing import Final, TypeVar, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from zsaq.quant.bounds import TINY
from zsaq.quant.codes import groups
from zsaq.quant.grid import Grid
from zsaq.quant.layers import QuantEmbedding, QuantLayer
from zsaq.quant.quantizer import Quantizer
from zsaq.quant.ranges import MSEOptimal, Range, Static, search

T = TypeVar("T")
POWER: Final = 2.4  # of the error that initial ranges minimise
FACTORS: Final = tuple(share / 100 for share in range(100, 0, -1))
SAMPLE: Final = 300_000  # entries that tell a step as well as all of a large tensor do
UNEVEN: Final = "give levels='integer', or take a method that rounds to nearest or by GPTQ"
LOW, HIGH = -0.1, 1.1  # a sigmoid stretched over [0, 1] reaches both ends


@final
class SoftWeight(nn.Module):
    """A layer's weight, each entry of which learns whether it is rounded down or up.

    scale * (clip(base + h(V), low, high) - zero) with h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1). The base
    floor(W / scale + zero) is frozen, so that with `joint` the scale is learned as well (Genie-M: Jeon et al. 2023,
    arXiv 2212.04780, sec. 3.3); else it stays as it was found (AdaRound: Nagel et al. 2020, arXiv 2004.10568, eq. 23).
    At the start it is the float weight itself, inside the range: the one that the layer has, of a student that is
    `fitted` already, else one that is searched.
    """

    scale: Tensor
    base: Tensor
    zero: Tensor

    def __init__(self, layer: QuantLayer, joint: bool, fitted: bool = False) -> None:
        super().__init__()
        self.decided = False
        self.layer = [layer]  # in a list: it is no part of its own part
        self.grid, self.joint = layer.weight_quantizer.grid, joint
        if not self.grid.uniform:
            raise ValueError(
                f"rounding up or down is learned on even levels, and {self.grid.levels} ones are not: {UNEVEN}"
            )
        before, view = layer.weight_quantizer.ranges, groups(layer.rows().detach().float().flatten(1), self.grid)
        if fitted and isinstance(before, MSEOptimal):
            self.ranges = before
        else:
            self.ranges = MSEOptimal(view, self.grid, before.trained() is not None, POWER, FACTORS)
        scale, zero = self.ranges(view, self.grid)
        scale = scale.detach()
        place = view / scale + zero
        self.register_buffer("base", place.floor())
        self.register_buffer("zero", torch.as_tensor(zero, dtype=scale.dtype, device=scale.device))
        self.bits = nn.Parameter(torch.logit((place - self.base - LOW) / (HIGH - LOW)))
        if joint:
            self.scale = nn.Parameter(scale.clone())
        else:
            self.register_buffer("scale", scale.clone())

    def soft(self) -> Tensor:
        """h(V) in [0, 1], in the weight's grouped view."""
        return (torch.sigmoid(self.bits) * (HIGH - LOW) + LOW).clamp(0, 1)

    def hard(self) -> Tensor:
        """0 or 1, whichever h(V) is nearer to."""
        return (self.bits >= 0).to(self.base)

    def weight(self, bits: Tensor) -> Tensor:
        """The dequantized weight with these bits, in their shape."""
        codes = (self.base + bits).clamp(self.grid.low, self.grid.high)
        return (codes - self.zero) * self.ranges.held(self.scale, self.grid)

    def forward(self, rows: Tensor) -> Tensor:
        return self.weight(self.hard() if self.decided else self.soft()).reshape(rows.shape)

    def undecided(self, beta: Tensor | float) -> Tensor:
        """sum(1 - |2 h(V) - 1|^beta), zero if every bit is 0 or 1 (AdaRound, eq. 24)."""
        return (1 - (2 * self.soft() - 1).abs().pow(beta)).sum()

    @torch.no_grad()
    def harden(self) -> Quantizer:
        """Write the hard bits into the latent weight, so that the quantizer that is returned rounds to them."""
        layer = self.layer[0]
        layer.rows().copy_(self.weight(self.hard()).reshape(layer.rows().shape))
        self.ranges.scale.copy_(self.ranges.held(self.scale, self.grid))
        return Quantizer(self.grid, self.ranges)


@final
class LearnedStep(Range):
    """One learned step for a whole tensor (LSQ: Esser et al. 2020, arXiv 1902.08153), first searched on `x`, or that of
    a range that is `held`.

    The zero of an asymmetric grid is that of x's extremes and stays. Genie takes the first code or, if x has a negative
    entry, the middle one: half of the codes would then lie below zero for the -0.17 of a GELU.
    """

    def __init__(self, x: Tensor, grid: Grid, held: Range | None = None) -> None:
        super().__init__()
        if held is None:
            scale, zero = search(sampled(x.detach().float()).reshape(1, -1), grid, POWER, FACTORS)
        else:
            scale, zero = (torch.as_tensor(each).detach().clone() for each in held(x, grid))
        self.scale, self.zero = nn.Parameter(scale), float(zero)

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor | float]:
        return self.scale.clamp_min(TINY), self.zero

    def bounds(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """The extremes whose min-max range is this step."""
        scale = self.scale.detach().clamp_min(TINY)
        if grid.symmetric:
            return -grid.amplitude * scale, grid.amplitude * scale
        return (grid.low - self.zero) * scale, (grid.high - self.zero) * scale


@final
class SoftActivation(nn.Module):
    """An activation quantizer that leaves each entry in floats with probability `drop` (QDrop: Wei et al. 2022,
    arXiv 2203.05740, eq. 12), and where it is static, learns its step: from the first tensor that it sees, or from
    the one that a student has that is `fitted` already."""

    def __init__(self, quantizer: Quantizer, drop: float, rng: torch.Generator, fitted: bool = False) -> None:
        super().__init__()
        self.before, self.drop, self.rng, self.fitted = quantizer, drop, rng, fitted
        self.quantizer = None if quantizer.ranges.static else quantizer

    def forward(self, x: Tensor) -> Tensor:
        if self.quantizer is None:
            held = self.before.ranges if self.fitted else None
            self.quantizer = Quantizer(self.before.grid, LearnedStep(x, self.before.grid, held))
        return qdrop(self.quantizer(x), x, self.drop, self.rng)

    @torch.no_grad()
    def harden(self) -> Quantizer:
        """The quantizer that was there, its static range now the learned one."""
        ranges = None if self.quantizer is None else self.quantizer.ranges
        if isinstance(ranges, LearnedStep):
            assert isinstance(self.before.ranges, Static)
            self.before.ranges.hold(*ranges.bounds(self.before.grid))
        return self.before


def sampled(x: Tensor) -> Tensor:
    """SAMPLE entries of x, flat and always the same ones; all, of a smaller one."""
    if x.numel() <= SAMPLE:
        return x.flatten()
    return x.flatten()[torch.randint(x.numel(), (SAMPLE,), generator=torch.Generator().manual_seed(0)).to(x.device)]


def qdrop(x: Tensor, other: Tensor, share: float, rng: torch.Generator) -> Tensor:
    """`x`, with `other`'s value in each entry with probability `share`."""
    if not share:
        return x
    return torch.where(torch.rand(x.shape, generator=rng, device=x.device) < share, other, x)


Soft = SoftWeight | SoftActivation


@final
class Softened:
    """A block with soft parts in the place of its quantizers, except those in `done`, until `harden` or `restore`.

    A quantizer that stands at several places gets one soft part. `norms` are the gains and shifts, that want a
    gradient, of the block's BatchNorms not in `done`; `restore` takes back what they learned as well.
    """

    def __init__(
        self, block: nn.Module, joint: bool, drop: float, rng: torch.Generator, done: set[nn.Module], fitted: bool
    ) -> None:
        self.soft: dict[nn.Module, Soft] = {}
        self.places: list[tuple[nn.Module, str, nn.Module]] = []
        self.owners = [part for part in block.modules() if isinstance(part, _BatchNorm) and part not in done]
        self.norms = [p for part in self.owners for p in part.parameters(recurse=False) if p.requires_grad]
        self.before = [p.detach().clone() for p in self.norms]
        for owner in list(block.modules()):
            for name, part in list(owner.named_children()):
                if not isinstance(part, Quantizer) or part in done or isinstance(owner, QuantEmbedding):
                    continue
                if part not in self.soft:
                    if isinstance(owner, QuantLayer) and name == "weight_quantizer":
                        self.soft[part] = SoftWeight(owner, joint, fitted)
                    else:
                        self.soft[part] = SoftActivation(part, drop, rng, fitted)
                self.places.append((owner, name, part))
                owner.add_module(name, self.soft[part])

    @property
    def weights(self) -> list[SoftWeight]:
        return [soft for soft in self.soft.values() if isinstance(soft, SoftWeight)]

    @property
    def steps(self) -> list[nn.Parameter]:
        """Learned steps; none before the block was run once."""
        ranges = [s.quantizer.ranges for s in self.soft.values() if isinstance(s, SoftActivation) and s.quantizer]
        return [r.scale for r in ranges if isinstance(r, LearnedStep)]

    def decided(self, measure: Callable[[], T]) -> T:
        """What `measure` answers while the block does as it will once it is hardened: every bit is 0 or 1 and nothing
        is dropped."""
        inputs = [soft for soft in self.soft.values() if isinstance(soft, SoftActivation)]
        drops = [each.drop for each in inputs]
        try:
            for each in self.weights:
                each.decided = True
            for each in inputs:
                each.drop = 0.0
            return measure()
        finally:
            for each in self.weights:
                each.decided = False
            for each, drop in zip(inputs, drops, strict=True):
                each.drop = drop

    @torch.no_grad()
    def restore(self) -> None:
        """As before."""
        for owner, name, part in self.places:
            owner.add_module(name, part)
        for norm, before in zip(self.norms, self.before, strict=True):
            norm.copy_(before)

    def harden(self) -> set[nn.Module]:
        """Ordinary quantizers that round to what was learned; returns them, and the BatchNorms, which stay from now."""
        hard = {part: soft.harden() for part, soft in self.soft.items()}
        for owner, name, part in self.places:
            owner.add_module(name, hard[part])
        return {*hard.values(), *self.owners}
