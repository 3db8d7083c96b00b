"""SAM perturbs behind the quantizer, in the layer's offset: on latent 2-bit weights, a step of rho flips a few codes by
whole grid steps, about 70 times too far and almost orthogonal to the gradient.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Final, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _BatchNorm

from zsaq.quant.layers import QuantLayer, quant_layers
from zsaq.quant.sharded import alike, gathered, is_sharded, like, total_norm, whole, zeros_like_rows
from zsaq.train.optim import Closure, NotFinite, Wrapper, look

PROBE: Final = 10  # every so many perturbations are measured


@final
class SAM(Wrapper):
    """Steps with the gradient taken at the worst point nearby (Foret et al. 2021, arXiv 2010.01412, eq. 2).

    eps = rho * g / (||g||_2 + 1e-12), one norm over everything perturbed. Trained quantized layers perturb through
    `offset` (Liu et al. 2021, SAQ, arXiv 2111.12273), where the gradient is the one at the dequantized weight; ends of
    a tie share one offset. Other trained parameters (norms, biases, heads, adapters) are moved in place and restored by
    copy. Trained is what the base holds and requires a gradient. Learned scales are the quantizer's: trained, not
    perturbed. With several processes each perturbs on its own gradient (the paper's m-sharpness), and the second
    gradient is averaged as ever; of a sharded student, and with `together`, the first one is too.

    The second pass runs without autocast, since bfloat16 would round eps away; the closure must not enter one itself.
    It repeats the first pass's random numbers (dropout; CPU and CUDA) and leaves no trace in batch statistics. Every
    tenth step has its first pass in full precision too, so that "gap" = (second loss - first) / |first| compares like
    with like (without autocast, always), and measures the "cosine" between eps and the change of the weights that
    quantized layers use. Extra memory: a gradient per quantized weight, a copy of each other parameter.

    SAM finds flat minima late in training (Zhou et al. 2024, arXiv 2410.10373), and each of its steps costs two: the
    first `after` steps are plain ones.

    Raises ValueError for a rho or an `after` that cannot be, if nothing is perturbed or in fewer than 32 bits, and
    NotFinite, with all restored and no step taken, if a loss or the norm is not finite on any process.
    """

    def __init__(
        self, base: torch.optim.Optimizer | Wrapper, student: nn.Module, rho: float = 0.05, after: int = 0
    ) -> None:
        super().__init__(base)
        if not 0 <= rho < math.inf:
            raise ValueError(f"rho is {rho!r}; give a finite number that is not negative")
        if after < 0:
            raise ValueError(f"after is {after}; give the number of plain steps before, 0 or more")
        self.student, self.rho, self.after = student, rho, after
        self.measured: dict[str, Tensor] = {}
        self.perturbed()

    def step(self, closure: Closure | None = None) -> Tensor:
        if closure is None:
            raise ValueError("SAM looks twice: give step a closure, and put Clip inside: SAM(Clip(optimizer), student)")
        # Counted in a parameter group, as schedulers keep their own there, so that checkpoints keep the phase.
        count = self.param_groups[0].setdefault("sam_steps", 0)
        if self.rho and count >= self.after:
            loss = self.look_twice(closure, probe=count % PROBE == 0)
        else:
            loss = look(closure)
            self.demand_finite("the loss", loss)
        self.base.step()
        torch.clear_autocast_cache()
        self.param_groups[0]["sam_steps"] = count + 1
        return loss

    def diagnostics(self) -> dict[str, float]:
        return super().diagnostics() | {name: float(value) for name, value in self.measured.items()}

    def perturbed(self) -> tuple[list[list[QuantLayer]], list[Tensor]]:
        """Trained quantized layers, ends of a tie together; and the other parameters to perturb."""
        trained = {id(p): p for group in self.param_groups for p in group["params"] if p.requires_grad}
        layers = [layer for _, layer in quant_layers(self.student)]
        ends: dict[int, list[QuantLayer]] = {}
        for layer in (layer for layer in layers if id(layer.weight) in trained):
            ends.setdefault(id(layer.weight), []).append(layer)
        scales = {id(p) for layer in layers for part in layer.children() for p in part.parameters()}
        params = [p for i, p in trained.items() if i not in ends and i not in scales]
        if not ends and not params:
            raise ValueError("SAM has nothing to perturb: the base trains no parameter of the student but scales")
        if short := {t.dtype for t in (*(trained[i] for i in ends), *params) if t.dtype.itemsize < 4}:
            raise ValueError(f"SAM's step is rounded away in parameters of {short}; train student.float()")
        return list(ends.values()), params

    def look_twice(self, closure: Closure, probe: bool) -> Tensor:
        """The first loss. Gradients are then those at the worst point, everything else is as it was."""
        ends, params = self.perturbed()
        stats = [b for m in self.student.modules() if isinstance(m, _BatchNorm) for b in m.buffers(recurse=False)]
        device = params[0].device if params else ends[0][0].weight.device
        autocast = torch.is_autocast_enabled(device.type)
        saved = [(b, b.clone()) for b in stats]
        try:
            leaves = [*(stand(tied) for tied in ends), *params]
            with (
                alone(leaves, self.param_groups),
                self.no_sync(),
                torch.random.fork_rng([device] if device.type == "cuda" else []),
                torch.autocast(device.type, enabled=autocast and not probe),
            ):
                first = look(closure)
            with torch.no_grad():
                eps = self.eps(leaves, first)
                layers = [tied[0] for tied in ends if probe]
                used = [in_use(layer) for layer in layers]
                saved = [(t, t.clone()) for t in (*params, *stats)]
                for tied, step in zip(ends, eps, strict=False):
                    for layer in tied:
                        layer.offset = step
                for parameter, step in zip(params, eps[len(ends) :], strict=True):
                    parameter.add_(step)
                if layers:
                    change = [in_use(layer) - before for layer, before in zip(layers, used, strict=True)]
                    steps = eps[: len(layers)]
                    norms = total_norm(steps) * total_norm(change)
                    dots = [whole((e.flatten(1) * c).sum()).to(norms) for e, c in zip(steps, change, strict=True)]
                    self.measured["cosine"] = torch.stack(dots).sum() / norms.clamp_min(1e-30)
                    del change, steps
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

    def eps(self, leaves: list[Tensor], loss: Tensor) -> list[Tensor]:
        """How far each leaf is moved, in its gradient's memory."""
        eps = [torch.zeros_like(t) if t.grad is None else t.grad for t in leaves]
        for leaf, gradient in zip(leaves, eps, strict=True):
            if isinstance(gradient, DTensor):  # that of an offset is the sum so far, others are the mean already
                gradient.div_(1 if isinstance(leaf, nn.Parameter) else gradient.device_mesh.size())
            elif self.together and dist.is_initialized():
                dist.all_reduce(gradient.div_(dist.get_world_size()))
        norm = total_norm(eps)
        self.demand_finite("[loss, gradient norm]", torch.stack([loss.to(norm), norm]))
        for group in alike(eps):
            torch._foreach_mul_(group, self.rho / (float(norm) + 1e-12))
        return eps

    def demand_finite(self, what: str, values: Tensor) -> None:
        fine = values.isfinite().all().float()
        # All processes stop together: one that stops alone leaves the others waiting for it.
        if (self.no_sync is not nullcontext or is_sharded(self.student)) and dist.is_initialized():
            dist.all_reduce(fine, dist.ReduceOp.MIN)
        if not fine:
            raise NotFinite(
                f"{what} is {values.tolist()}, not finite here or on another process; the weights are as they were and "
                "no step was taken. Lower the learning rate or rho, or look at the last batch"
            )


def in_use(layer: QuantLayer) -> Tensor:
    """The weight that the layer uses; of a sharded one the part that this process has of the offset."""
    with gathered(layer):
        assert layer.offset is not None
        return like(layer.dequantized(), layer.offset)


@contextmanager
def alone(leaves: list[Tensor], groups: list[dict[str, Any]]) -> Iterator[None]:
    """Inside, no other parameter of the groups gathers a gradient: nobody would read it."""
    wanted = {id(leaf) for leaf in leaves}
    others = [p for group in groups for p in group["params"] if p.requires_grad and id(p) not in wanted]
    try:
        for p in others:
            p.requires_grad_(False)
        yield
    finally:
        for p in others:
            p.requires_grad_(True)


def stand(tied: list[QuantLayer]) -> Tensor:
    """Give tied layers one offset of zeros, [out, in * ...], that requires a gradient."""
    offset = zeros_like_rows(tied[0].weight, tied[0].rows().flatten(1)).requires_grad_()
    for layer in tied:
        layer.offset = offset
    return offset
