"""Gradient matching: images whose gradients point one way near each of them (GradientMatching), and many ways among
themselves (Diversity).

The gradient of a layer's reconstruction loss 1/2 sum_p |f_P - f_Q|^2 at its weight is, for one sample, minus
sum_p e_p h_p' over its positions p, with the error e = f_P - f_Q at the layer's output and its input h, as rounded as
it is multiplied. No backward pass is needed. With one position, as in a classifier's head, cos(G, G2) = cos(e, e2)
cos(h, h2).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zsaq.quant.layers import QuantLayer
from zsaq.train.compensation import padded
from zsaq.train.objectives import Objective
from zsaq.train.pair import Capture, Pair
from zsaq.train.randomness import generator
from zsaq.train.synthesis import seed_of
from zsaq.vision.sources.pixels import Unrolled
from zsaq.vision.sources.swing import Latents

Where = type | Callable[[str, nn.Module], bool]


@dataclass(frozen=True)
class Directions:
    """Unit vectors `h` [B, n] and `e` [B, m]; the gradient of sample i points along the outer product of their rows."""

    h: Tensor
    e: Tensor

    def with_each(self, other: "Directions") -> Tensor:
        """Cosines [B] of the gradients of equal rows."""
        return (self.h * other.h).sum(-1) * (self.e * other.e).sum(-1)

    def with_all(self, other: "Directions") -> Tensor:
        """Cosines [B, M] of all gradients here with all M there."""
        return (self.h @ other.h.T) * (self.e @ other.e.T)

    def detach(self) -> "Directions":
        return Directions(self.h.detach(), self.e.detach())


@final
class LayerGradient:
    """Directions of every sample's gradient at the weight of one layer, a linear layer or a convolution.

    `layer` finds it in both models, alike: the head (SADAG's choice), or any other. Its error is taken at the output of
    `error` (by default the layer itself), a block that adds the layer's output to others unchanged, as the last layer
    of a transformer's block; what stands between them, such as a norm, is not seen. Several positions are summed;
    `sketch` is the number of random projections on either side of the outer products, so that a sample costs
    positions * sketch * (sketch + inputs + outputs); None is exact, positions * inputs * outputs. Cosines of sketches
    are off by about sqrt(2 / sketch).
    """

    def __init__(self, layer: Where, error: Where | None = None, *, sketch: int | None = 64, seed: int = 0) -> None:
        if sketch is not None and sketch < 1:
            raise ValueError(f"sketch is {sketch}; give a positive number of projections, or None for all")
        error = error or layer
        self.captures = (Capture("teacher", error), Capture("student", error), Capture("student", layer, "input"))
        self.sketch, self.seed = sketch, seed
        self.projections: dict[tuple[str, int], Tensor] = {}

    def __call__(self, pair: Pair) -> Directions:
        """Of a pair with these captures. Raises ValueError unless they find one layer and one error that fits it."""
        target = pair.teacher.seen[self.captures[0]]
        answer, seen = (pair.student.seen[capture] for capture in self.captures[1:])
        if len(answer) != 1 or len(seen) != 1 or not isinstance(layer := seen[0][0], nn.Linear | nn.Conv2d):
            kinds = [type(module).__name__ for module, _ in seen]
            raise ValueError(f"gradients are matched at one linear layer or convolution, seen once; here are {kinds}")
        x = seen[0][1].float()
        if isinstance(layer, QuantLayer):
            x = layer.inputs(x)  # what the weight is multiplied with
        e, h = _errors(layer, target[0][1].float() - answer[0][1].float()), _inputs(layer, x)
        if e.shape[:3] != h.shape[:3]:
            raise ValueError(f"the error has positions and groups {list(e.shape[1:3])}, the layer {list(h.shape[1:3])}")
        if e.shape[1:3] == (1, 1):
            return Directions(F.normalize(h[:, 0, 0], dim=-1), F.normalize(e[:, 0, 0], dim=-1))
        outer = torch.einsum("bpgi,bpgj->bgij", self.project("e", e), self.project("h", h)).flatten(1)
        return Directions(F.normalize(outer, dim=-1), torch.ones_like(outer[:, :1]))

    def project(self, side: str, x: Tensor) -> Tensor:
        """x [..., n] onto `sketch` random directions [n, sketch] of variance 1 / sketch, the same at every call."""
        width = x.shape[-1]
        if self.sketch is None or width <= self.sketch:
            return x
        if (side, width) not in self.projections:
            rng = torch.Generator().manual_seed(seed_of(self.seed, side == "e"))
            drawn = torch.randn(width, self.sketch, generator=rng) * self.sketch**-0.5
            self.projections[side, width] = drawn.to(x)
        return x @ self.projections[side, width]


def _errors(layer: nn.Linear | nn.Conv2d, e: Tensor) -> Tensor:
    """A layer's output as [B, positions, groups, outputs of a group]."""
    if isinstance(layer, nn.Conv2d):
        return e.flatten(2).transpose(1, 2).unflatten(-1, (layer.groups, -1))
    return e.reshape(len(e), -1, 1, e.shape[-1])


def _inputs(layer: nn.Linear | nn.Conv2d, x: Tensor) -> Tensor:
    """What rows of a layer's weight are multiplied with, [B, positions, groups, inputs of a group]."""
    if isinstance(layer, nn.Linear):
        return x.reshape(len(x), -1, 1, x.shape[-1])
    columns = F.unfold(padded(layer, x), layer.kernel_size, layer.dilation, 0, layer.stride)
    return columns.unflatten(1, (layer.groups, -1)).permute(0, 3, 1, 2)


@final
class GradientMatching(Objective):
    """1 - mean cosine between an image's gradient and that of its neighbour (SADAG, arXiv 2510.07018, eq. 16 and 17).

    The neighbour is what the generator makes of the latent moved by `radius` to where the cosine falls fastest. There
    is no such direction at the image itself, where the cosine is at its maximum: the slope is taken at a random point
    at a tenth of the radius. `released` takes it at the image, with 1e-9 added to the fixed side, as the released code
    does; what it then follows is rounding noise. Gradients flow through image and neighbour.
    """

    def __init__(
        self,
        source: Latents | Unrolled,
        layer: LayerGradient,
        radius: float = 2.0,
        *,
        released: bool = False,
        seed: int = 0,
    ) -> None:
        if not radius > 0:
            raise ValueError(f"radius is {radius}; give a positive number, in the space of latents")
        self.source, self.layer, self.radius, self.released = source, layer, radius, released
        self.captures = layer.captures
        self.rng = generator(seed)

    def __call__(self, pair: Pair) -> Tensor:
        here = self.layer(pair)
        return 1 - here.with_each(self.at(pair, self.worst(pair, here.detach()))).mean()

    def at(self, pair: Pair, step: Tensor) -> Directions:
        """Of the images at latents moved by step [B, width]."""
        return self.layer(pair.at(pixel_values=self.source.decoder(self.source.latents + step)))

    def worst(self, pair: Pair, here: Directions) -> Tensor:
        """The step [B, width] of length `radius` to the neighbours."""
        start = torch.zeros_like(self.source.latents)
        if self.released:
            here = Directions(here.h + 1e-9, here.e + 1e-9)
        else:
            drawn = torch.randn(start.shape, generator=self.rng).to(start)
            start = 0.1 * self.radius * F.normalize(drawn, dim=-1)
        start.requires_grad_()
        with torch.enable_grad():
            similarity = here.with_each(self.at(pair, start)).mean()
            slope = torch.autograd.grad(similarity, start)[0]
        return -self.radius * F.normalize(slope, dim=-1, eps=1e-30)


@final
class Diversity(Objective):
    """Mean over images of max(|cosine| - slack, 0) with the gradient that is closest to theirs, of the others in the
    batch and of all remembered ones (SADAG, arXiv 2510.07018, eq. 20). Only the image itself feels it."""

    def __init__(self, layer: LayerGradient, slack: float = 0.0) -> None:
        if not 0 <= slack < 1:
            raise ValueError(f"slack is {slack}; give a cosine from 0 to below 1")
        self.layer, self.slack, self.captures = layer, slack, layer.captures
        self.memory: list[Directions] = []

    def __call__(self, pair: Pair) -> Tensor:
        here = self.layer(pair)
        others = [here.detach(), *self.memory]
        everyone = Directions(torch.cat([d.h for d in others]), torch.cat([d.e for d in others]))
        close = (here.with_all(everyone).abs() - self.slack).relu()
        itself = torch.eye(*close.shape, dtype=torch.bool, device=close.device)
        return close.masked_fill(itself, 0.0).amax(1).mean()

    @torch.no_grad()
    def remember(self, pair: Pair) -> None:
        """Keep the directions of finished images; memory is bounded by their number."""
        self.memory.append(self.layer(pair).detach())
