"""SAM perturbs behind the quantizer, in the layer's offset: on latent 2-bit weights, a step of rho flips a few codes by
whole grid steps, about 70 times too far and almost orthogonal to the gradient.
"""

import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Literal, final, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from zsaq.quant.layers import QuantLayer, quant_layers
from zsaq.train.optim import Closure, NotFinite, Wrapper, look

Where = Literal["post-quantizer", "latent", "norm"]
Perturbation = Literal["local", "synchronised"]


@final
class SAM(Wrapper):
    """Steps with the gradient taken at the worst point nearby (Foret et al. 2021, arXiv 2010.01412, eq. 2).

    eps = rho * g / (||g||_2 + 1e-12), one norm over everything perturbed. `adaptive`: ASAM (Kwon et al. 2021, arXiv
    2102.11600, eq. 8): eps = rho * T^2 g / ||T g||_2 with T = |w| + eta. `where`:

    - "post-quantizer" (Liu et al. 2021, SAQ, arXiv 2111.12273): trained quantized layers perturb through `offset`,
      where the gradient is the one at the dequantized weight; ends of a tie share one offset. Other trained parameters
      (norms, biases, heads, adapters) are moved in place and restored by copy.
    - "latent": all in place, latent weights too. For comparison; see above why it fails at few bits.
    - "norm": only the norm layers' parameters (Mueller et al. 2023, SAM-ON, arXiv 2306.04226).

    Trained is what the base holds and requires a gradient. Learned scales are the quantizer's: trained, not perturbed.
    `interval` k perturbs on the 1st, (k+1)-th, ... step and steps plainly in between; rho is used as given, so give k
    times as much for the same strength on average. `perturb`: each process on its own gradient ("local", the paper's
    m-sharpness) or all on the sum ("synchronised"); the second gradient is averaged as ever.

    The second pass runs without autocast, since bfloat16 would round eps away; the closure must not enter one itself.
    It repeats the first pass's random numbers (dropout; CPU and CUDA) and leaves no trace in batch statistics. Every
    `probe`-th perturb has its first pass in full precision too, so that "gap" = (second loss - first) / |first|
    compares like with like (without autocast, always), and measures the "cosine" between eps and the change of the
    weights that quantized layers use. Extra memory: a gradient per quantized weight, a copy of each other parameter.

    Raises ValueError for options that cannot be, if nothing is perturbed or in fewer than 32 bits, and NotFinite, with
    all restored and no step taken, if a loss or the norm is not finite on any process.
    """

    def __init__(
        self,
        base: torch.optim.Optimizer | Wrapper,
        student: nn.Module,
        rho: float = 0.05,
        where: Where = "post-quantizer",
        adaptive: bool = False,
        eta: float = 0.01,
        interval: int = 1,
        perturb: Perturbation = "local",
        probe: int = 10,
    ) -> None:
        super().__init__(base)
        if not (0 <= rho < math.inf and 0 <= eta < math.inf):
            raise ValueError(f"rho is {rho!r} and eta {eta!r}; give finite numbers that are not negative")
        if not (type(interval) is type(probe) is int and interval >= 1 and probe >= 1):
            raise ValueError(f"interval is {interval!r} and probe {probe!r}; give positive integers")
        if where not in get_args(Where) or perturb not in get_args(Perturbation):
            raise ValueError(
                f"where is {where!r} and perturb {perturb!r}; allowed: {get_args(Where)} and {get_args(Perturbation)}"
            )
        self.student, self.rho, self.where, self.adaptive, self.eta = student, rho, where, adaptive, eta
        self.interval, self.perturb, self.probe = interval, perturb, probe
        self.measured: dict[str, Tensor] = {}
        self.perturbed()

    def step(self, closure: Closure | None = None) -> Tensor:
        if closure is None:
            raise ValueError("SAM looks twice: give step a closure, and put Clip inside: SAM(Clip(optimizer), student)")
        # Counted in a parameter group, as schedulers keep their own there, so that checkpoints keep the phase.
        count = self.param_groups[0].setdefault("sam_steps", 0)
        if count % self.interval or not self.rho:
            loss = look(closure)
            self.demand_finite("the loss", loss)
        else:
            loss = self.look_twice(closure, count // self.interval % self.probe == 0)
        self.base.step()
        torch.clear_autocast_cache()
        self.param_groups[0]["sam_steps"] = count + 1
        self.measured["loss"] = loss
        return loss

    def diagnostics(self) -> dict[str, float]:
        return super().diagnostics() | {name: float(value) for name, value in self.measured.items()}

    def perturbed(self) -> tuple[list[list[QuantLayer]], list[Tensor]]:
        """Trained quantized layers, ends of a tie together; and the other parameters to perturb."""
        trained = {id(p): p for group in self.param_groups for p in group["params"] if p.requires_grad}
        if self.where == "norm":
            norms = {id(p) for norm in norm_layers(self.student) for p in norm.parameters(recurse=False)}
            trained = {i: p for i, p in trained.items() if i in norms}
        layers = [layer for _, layer in quant_layers(self.student)]
        ends: dict[int, list[QuantLayer]] = {}
        for layer in (layer for layer in layers if id(layer.weight) in trained):
            ends.setdefault(id(layer.weight), []).append(layer)
        scales = {id(p) for layer in layers for part in layer.children() for p in part.parameters()}
        params = [p for i, p in trained.items() if i not in ends and i not in scales]
        if not ends and not params:
            raise ValueError(
                f"SAM has nothing to perturb: the base trains no parameter that where={self.where!r} means"
            )
        if short := {t.dtype for t in (*(trained[i] for i in ends), *params) if t.dtype.itemsize < 4}:
            raise ValueError(f"SAM's step is rounded away in parameters of {short}; train student.float()")
        return list(ends.values()), params

    def look_twice(self, closure: Closure, probe: bool) -> Tensor:
        """The first loss. Gradients are then those at the worst point, everything else is as it was."""
        ends, params = self.perturbed()
        behind = self.where == "post-quantizer"
        moved = params if behind else [*(tied[0].weight for tied in ends), *params]
        stats = [b for m in self.student.modules() if isinstance(m, _BatchNorm) for b in m.buffers(recurse=False)]
        device = moved[0].device if moved else ends[0][0].weight.device
        autocast = torch.is_autocast_enabled(device.type)
        saved = [(b, b.clone()) for b in stats]
        try:
            leaves = [*(stand(tied) for tied in ends if behind), *moved]
            with (
                self.no_sync(),
                torch.random.fork_rng([device] if device.type == "cuda" else []),
                torch.autocast(device.type, enabled=autocast and not probe),
            ):
                first = look(closure)
            with torch.no_grad():
                eps = self.eps(leaves, [tied[0] for tied in ends if behind], first)
                layers = [tied[0] for tied in ends if probe and self.rho]
                used = [layer.dequantized() for layer in layers]
                saved = [(t, t.clone()) for t in (*moved, *stats)]
                for tied, step in zip(ends if behind else [], eps, strict=False):
                    for layer in tied:
                        layer.offset = step
                if moved:
                    torch._foreach_add_(moved, eps[-len(moved) :])
                if layers:
                    change = [layer.dequantized() - before for layer, before in zip(layers, used, strict=True)]
                    turned = [e.T if n.columns_first and not behind else e for n, e in zip(layers, eps, strict=False)]
                    norms = nn.utils.get_total_norm(turned) * nn.utils.get_total_norm(change)
                    dots = [(e.flatten(1) * c).sum().to(norms) for e, c in zip(turned, change, strict=True)]
                    self.measured["cosine"] = torch.stack(dots).sum() / norms.clamp_min(1e-30)
                    del change, turned
                del eps, used  # before the second pass fills the memory
            self.zero_grad()
            torch.clear_autocast_cache()  # casts of the weights before they were moved
            with torch.autocast(device.type, enabled=False):
                second = look(closure)
            self.demand_finite("the loss at the worst point", second)
        finally:
            for layer in (layer for tied in ends for layer in tied):
                layer.offset = None
            with torch.no_grad():
                for tensor, copy in saved:
                    tensor.copy_(copy)
        if probe or not autocast:
            self.measured["gap"] = (second - first) / first.abs()
        return first

    def eps(self, leaves: list[Tensor], layers: list[QuantLayer], loss: Tensor) -> list[Tensor]:
        """How far each leaf perturbs, in its gradient's memory. The first leaves are the offsets of `layers`."""
        eps = [torch.zeros_like(t) if t.grad is None else t.grad for t in leaves]
        if self.perturb == "synchronised" and self.parallel():
            for e in eps:
                dist.all_reduce(e)  # the sum is enough: eps does not depend on the gradient's scale
        weights = (*(layer.dequantized() for layer in layers), *leaves[len(layers) :]) if self.adaptive else ()
        sizes = [w.abs().add_(self.eta) for w in weights]
        if sizes:
            torch._foreach_mul_(eps, sizes)
        norm = nn.utils.get_total_norm(eps)
        self.demand_finite("[loss, gradient norm]", torch.stack([loss.to(norm), norm]))
        if sizes:
            torch._foreach_mul_(eps, sizes)
        torch._foreach_mul_(eps, self.rho / (float(norm) + 1e-12))
        return eps

    def parallel(self) -> bool:
        asked = self.perturb == "synchronised" or self.no_sync is not nullcontext
        return asked and dist.is_available() and dist.is_initialized()

    def demand_finite(self, what: str, values: Tensor) -> None:
        fine = values.isfinite().all().float()
        if self.parallel():  # all stop together: one that stops alone leaves the others waiting for it
            dist.all_reduce(fine, dist.ReduceOp.MIN)
        if not fine:
            raise NotFinite(
                f"{what} is {values.tolist()}, not finite here or on another process; the weights are as they were and "
                "no step was taken. Lower the learning rate or rho, or look at the last batch"
            )


def stand(tied: list[QuantLayer]) -> Tensor:
    """Give tied layers one offset of zeros, [out, in * ...], that requires a gradient; stride 0 takes no memory."""
    rows = tied[0].rows().flatten(1)
    offset = torch.zeros((), dtype=rows.dtype, device=rows.device).expand(rows.shape).requires_grad_()
    for layer in tied:
        layer.offset = offset
    return offset


def norm_layers(model: nn.Module) -> Iterator[nn.Module]:
    """By type, or, for each architecture's own RMSNorm, by structure: leaf modules with a 1-d weight, but PReLU."""
    for module in model.modules():
        weight = module._parameters.get("weight")
        leaf = weight is not None and weight.ndim == 1 and not any(True for _ in module.children())
        if isinstance(module, nn.LayerNorm) or (leaf and not isinstance(module, nn.PReLU)):
            yield module
