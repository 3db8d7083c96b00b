"""Gradient inundation (Choi et al. 2022, AIT, arXiv 2203.17008): steps are stretched until enough codes change.

Near its end, training in integers stalls: latent weights move by less than what a code needs to change. A layer's step
is therefore multiplied by the smallest kappa >= 1 at which a share of its codes changes (eqs. 8 to 12).
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from zsaq.quant.codes import round_to_grid
from zsaq.quant.layers import quant_layers
from zsaq.quant.quantizer import Quantizer
from zsaq.train.optim import Closure, Wrapper

WARMUP_CAP = 128  # AIT's cap of its warm-up
TOGETHER = {"cpu": 2**17}  # numbers in one call: what stays in a processor's cache,
ELSEWHERE = 2**25  # or fits in a device's memory, where calls cost more than numbers


@final
@dataclass(frozen=True, eq=False)
class WeightCodes:
    """A latent weight, and what takes its rows [..., out, in * ...] to integer codes of that shape."""

    weight: Tensor
    quantizer: Quantizer
    columns_first: bool = False

    def __call__(self, rows: Tensor) -> Tensor:
        """The quantizer's codes as floats, for any number of trials at once; ranges are those of each trial."""
        grid, view = self.quantizer.grid, rows
        if grid.per == "tensor":
            view = rows.flatten(-2)[..., None, :]
        elif isinstance(grid.per, int):
            view = rows.unflatten(-1, (-1, grid.per))
        scale, zero = self.quantizer.ranges(view, grid)
        return round_to_grid(view, scale, zero, grid).view(rows.shape)

    def rows(self) -> Tensor:
        weight = self.weight.detach()
        return weight.T if self.columns_first else weight.flatten(0, 1) if weight.ndim == 3 else weight.flatten(1)

    def write(self, rows: Tensor) -> None:
        self.weight.copy_(rows.T if self.columns_first else rows.view(self.weight.shape))

    def kind(self) -> tuple[Any, ...]:
        """Equal for weights that one call may round: rows as long, each with a min-max range of its own."""
        rows, grid = self.rows(), self.quantizer.grid
        apart = grid.per == "tensor" or self.quantizer.ranges.kept
        return rows.shape[1], rows.dtype, rows.device, grid, id(self.weight) if apart else None


def weight_codes(student: nn.Module) -> list[WeightCodes]:
    """One for every quantized layer of `student`; ends of a tie once. Raises ValueError if there is none."""
    codes = {
        id(layer.weight): WeightCodes(layer.weight, layer.weight_quantizer, layer.columns_first)
        for _, layer in quant_layers(student)
    }
    if not codes:
        raise ValueError(f"{type(student).__name__} has no quantized layer; give what quantize_model returns")
    return list(codes.values())


@final
class Bucket:
    """Weights of a kind as one matrix [rows, in * ...]; `owner` [rows] says to which layer a row belongs."""

    def __init__(self, members: list[tuple[int, WeightCodes]]) -> None:
        self.members = [member for _, member in members]
        self.lengths = [len(member.rows()) for member in self.members]
        owner = [torch.full((n,), i) for (i, _), n in zip(members, self.lengths, strict=True)]
        self.owner = torch.cat(owner).to(self.members[0].weight.device)
        self.together = TOGETHER.get(self.owner.device.type, ELSEWHERE)

    def hold(self) -> None:
        """Keep the weights before the step, and their codes."""
        self.before = torch.cat([member.rows() for member in self.members])
        self.codes = self.members[0](self.before)

    def take(self, alive: Tensor) -> None:
        """See the step that was taken; that of a layer without a gradient is taken back."""
        after, alive = torch.cat([member.rows() for member in self.members]), alive[self.owner, None]
        self.after = torch.where(alive, after, self.before)
        self.way = self.after - self.before

    def at(self, kappa: Tensor) -> Tensor:
        """Weights [..., rows, in * ...] with the step of layer l kappa [..., l] times as long; at 1 just the base's."""
        return ((kappa - 1)[..., self.owner, None] * self.way).add_(self.after)

    def changed(self, kappa: Tensor) -> Tensor:
        """How many codes of each row [trials, rows] change, as floats."""
        trials = kappa.split(max(1, self.together // self.way.numel()))
        return torch.cat([self.members[0](self.at(some)).ne_(self.codes).sum(-1) for some in trials])

    def finish(self, kappa: Tensor) -> None:
        for member, rows in zip(self.members, self.at(kappa).split(self.lengths), strict=True):
            member.write(rows)
        del self.before, self.after, self.way, self.codes


def stretch(changed: Callable[[Tensor], Tensor], need: Tensor, doublings: int) -> Tensor:
    """The kappa [layers] found by doubling from 1 until changed(kappa) >= need, then halving the last doubling 5 times.

    The end of the bisection that meets the need is taken; a layer that never meets it gets 2^doublings. All layers go
    in lock-step and nothing is read back. `changed` takes trials [n, layers]: all doublings in one call, the
    bisections in two, as a tree of three levels and one of two.
    """
    count = torch.arange(doublings + 1, device=need.device)
    short = changed((2.0**count)[:, None].expand(-1, len(need))) < need
    high = 2.0 ** short.cumprod(0).sum(0).clamp_max(doublings)
    low = torch.where(high > 1, high / 2, high)
    width = high - low
    for levels in (3, 2):
        parts = 2**levels
        inside = torch.arange(1, parts, device=need.device)[:, None]
        short = changed(low + inside * (width / parts)) < need
        place = torch.zeros_like(need, dtype=torch.int64)
        for level in reversed(range(levels)):
            middle = place + 2**level
            place = torch.where(short.gather(0, middle[None] - 1)[0], middle, place)
        width = width / parts
        low = low + place * width
    return low + width


@final
class GradientInundation(Wrapper):
    """Takes the base's step, then stretches it along itself, layer by layer, until a share of the codes changes.

    The step is the realised one, so any base will do (SGD, Adam, another wrapper); its momentum sees plain gradients.
    `codes` are the stretched weights, as `weight_codes(student)` gives them; all else (biases, norms) moves as the base
    moves it. Of each layer at least `share` of the codes changes, unless kappa, a multiple between 1 and `cap`, a power
    of 2, cannot do it. AIT halts at 128 during a warm-up and has no cap after it; here the cap is `min(cap, 128)` in
    the first `warmup` steps. As AIT lowers share and learning rate by 10 at the same epochs, the share follows the
    schedule: it is multiplied by lr / initial_lr of the first group. A layer without a gradient (none, or all zeros)
    stays where it is. No step waits for the device.

    AIT's released code ends at the last midpoint, whether or not it meets the share; here it is met.
    Raises ValueError for numbers that cannot be, and if the base trains none of the weights.
    """

    def __init__(
        self,
        base: torch.optim.Optimizer | Wrapper,
        codes: list[WeightCodes],
        share: float = 1e-3,
        cap: int = WARMUP_CAP,
        warmup: int = 0,
    ) -> None:
        super().__init__(base)
        if not 0 < share < 1:
            raise ValueError(f"share is {share!r}; give a number between 0 and 1, such as 1e-3")
        if type(cap) is not int or cap < 1 or cap & (cap - 1):
            raise ValueError(f"cap is {cap!r}; give a power of 2, such as 128")
        if type(warmup) is not int or warmup < 0:
            raise ValueError(f"warmup is {warmup!r}; give a number of steps")
        self.share, self.cap, self.warmup = share, cap, warmup
        trained = {id(p) for group in self.param_groups for p in group["params"] if p.requires_grad}
        self.codes = [c for c in codes if id(c.weight) in trained]
        if not self.codes:
            raise ValueError("there is nothing to inundate: the base trains none of the quantized weights")
        self.buckets: list[Bucket] = []
        self.measured: dict[str, Tensor] = {}

    def step(self, closure: Closure | None = None) -> Tensor | None:
        if not self.buckets:
            self.fill()
        with torch.no_grad():
            for bucket in self.buckets:
                bucket.hold()
        loss: Any = self.base.step(closure)  # type: ignore[arg-type]  # torch says float, and takes tensors
        with torch.no_grad():
            self.inundate()
        return loss if loss is None else loss.detach()

    def fill(self) -> None:
        """At the first step, when the weights are where they are trained."""
        kinds: dict[Any, list[tuple[int, WeightCodes]]] = {}
        seen = Counter()
        for i, codes in enumerate(self.codes):
            kind = codes.kind()
            kinds.setdefault((kind, seen[kind] // TOGETHER.get(codes.weight.device.type, ELSEWHERE)), []).append(
                (i, codes)
            )
            seen[kind] += codes.weight.numel()
        self.buckets = [Bucket(members) for members in kinds.values()]
        sizes = [float(c.weight.numel()) for c in self.codes]
        # Slack of a millionth: 0.001 * 1000 may be 1 and a bit.
        self.sizes = torch.tensor(sizes, device=self.codes[0].weight.device) * (1 - 1e-6)

    def inundate(self) -> None:
        group = self.param_groups[0]
        # Counted in a parameter group, as schedulers keep their own there, so that checkpoints keep the phase.
        count = group.setdefault("inundation_steps", 0)
        group["inundation_steps"] = count + 1
        grads = [torch.zeros_like(self.sizes[0]) if c.weight.grad is None else c.weight.grad for c in self.codes]
        alive = torch.stack(torch._foreach_norm(grads, math.inf)) != 0
        for bucket in self.buckets:
            bucket.take(alive)

        def changed(kappa: Tensor) -> Tensor:
            counts = torch.zeros(kappa.shape, dtype=torch.int32, device=kappa.device)
            for bucket in self.buckets:  # whole numbers add up to the same in any order
                counts.index_add_(-1, bucket.owner, bucket.changed(kappa).int())
            return counts

        lr = group["lr"]
        need = self.sizes * (self.share * (lr / group["initial_lr"] if "initial_lr" in group else 1.0))
        cap = min(self.cap, WARMUP_CAP) if count < self.warmup else self.cap
        kappa = stretch(changed, need, cap.bit_length() - 1)
        share = changed(kappa[None]).sum() / self.sizes.sum()
        for bucket in self.buckets:
            bucket.finish(kappa)
        self.kappa = torch.where(alive, kappa, 1)
        self.measured = {
            "kappa": (self.kappa * alive).sum() / alive.sum().clamp_min(1),
            "codes changed": share,
        }

    def diagnostics(self) -> dict[str, float]:
        """Mean kappa of the layers that have a gradient, and the share of all codes that the last step changed."""
        return super().diagnostics() | {name: float(value) for name, value in self.measured.items()}
