"""What teacher and student see on the way: the energy of channels (HAST), and where on the image they look (SynQ)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zsaq.quant.modes import evaluating
from zsaq.train.objectives import Objective, labels_of
from zsaq.train.pair import Batch, Capture, Out, Pair, run_model
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.models import NORMS, At, last_feature_map

Where = type | Callable[[str, nn.Module], bool]


def by_channel(x: Tensor) -> Tensor:
    """A map [B, C, H, W] or tokens [B, N, C] as float [B, C, positions]."""
    return (x.flatten(2) if x.ndim == 4 else x.transpose(1, 2)).float()


@final
class ChannelAttention(Objective):
    """Sum over the captured modules of the mean (a_Q - a_P)^2, a = the energies mean(x^2) of the channels, normalised
    to length 1 for each sample (Li et al. 2023, HAST, arXiv 2303.13826, eq. 9).

    `where` finds modules that answer [B, C, H, W] or tokens [B, N, C]: `zsaq.vision.models.feature_places(teacher)`.
    """

    def __init__(self, where: Where) -> None:
        self.captures = (Capture("teacher", where), Capture("student", where))

    def __call__(self, pair: Pair) -> Tensor:
        sides = (pair.teacher.seen[self.captures[0]], pair.student.seen[self.captures[1]])
        each = [(self.attention(p) - self.attention(q)).square().mean() for (_, p), (_, q) in zip(*sides, strict=True)]
        return torch.stack(each).sum()

    def attention(self, x: Tensor) -> Tensor:
        return F.normalize(by_channel(x).square().mean(-1), dim=1)


@final
class ActivationMap(Objective):
    """||S_P - S_Q||_F^2, mean over samples, of the maps that show on what part of an image the label's logit rests.

    Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391): S = relu(sum_k w_k A_k), w_k = mean over positions of the slope
    of the label's logit along channel k of the map A; in SynQ (Kim et al. 2025), eq. 5. Weights w are constants, the
    gradient flows through the student's A alone; the teacher's map is constant. Labels: int64 [B], or float [B, C].

    `pixels` [n, channels, H, W] are a few images as the teacher gets them; from them the map's size is taken, and
    whether the teacher's slopes have a closed form (`closed_slopes`): if not, and its pass had no gradients, it runs a
    second time. `where` finds one module, by default `last_feature_map`. Of tokens [B, N, C] the last that fill a
    square are the map: classes and registers stand before them. Raises ValueError for a map of one position.
    """

    def __init__(self, teacher: nn.Module, pixels: Tensor, where: Where | None = None) -> None:
        where = where or last_feature_map(teacher, ImageSpec(1, min(pixels.shape[2:]), pixels.shape[1]))
        self.closed = closed_slopes(teacher, where, pixels)
        here = (Capture("teacher", where), Capture("student", where))
        self.captures = here if self.closed is None else (*here, *self.closed.captures)

    def __call__(self, pair: Pair) -> Tensor:
        labels = labels_of(pair)
        target = labels.float() if labels.ndim == 2 else F.one_hot(labels, pair.teacher.logits.shape[-1]).float()
        p, q = (
            by_position(out.seen[capture][-1][1])
            for out, capture in zip((pair.teacher, pair.student), self.captures, strict=False)
        )
        closed = None if self.closed is None else self.closed(pair.teacher, target)
        weights = (
            slopes(pair.models[0], pair.teacher, self.captures[0], pair.batch, target) if closed is None else closed
        )
        goal = saliency(p.detach(), weights)
        here = saliency(q, slopes(pair.models[1], pair.student, self.captures[1], pair.batch, target))
        return (goal - here).square().sum(-1).mean()


def by_position(x: Tensor) -> Tensor:
    """`by_channel` without the tokens that stand for no patch. Raises ValueError where no map is left."""
    whole = by_channel(x)
    kept = whole if x.ndim == 4 else whole[..., whole.shape[-1] - math.isqrt(whole.shape[-1]) ** 2 :]
    if kept.shape[-1] < 2:
        raise ValueError(
            f"a map of shape {tuple(x.shape)} has one position and shows nothing; capture an earlier module"
        )
    return kept


def saliency(x: Tensor, weights: Tensor) -> Tensor:
    """relu(sum_k w_k A_k), [B, positions], of x [B, C, positions] and weights [B, C]."""
    return (weights[..., None] * x).sum(1).relu()


def slopes(model: nn.Module, out: Out, capture: Capture, batch: Batch, target: Tensor) -> Tensor:
    """Mean over positions of the slope of sum(target * logits) along each channel of the map, [B, C], a constant.

    From the graph of the pass that was, or, if it had none, of another one.
    """
    if not out.seen[capture][-1][1].requires_grad:
        with torch.enable_grad():
            out = run_model(
                model, {**batch, "pixel_values": batch["pixel_values"].detach().requires_grad_()}, (capture,)
            )
    x = out.seen[capture][-1][1]
    with torch.enable_grad():
        (slope,) = torch.autograd.grad((out.logits * target).sum(), x, retain_graph=True)
    return by_position(slope).mean(-1)


@final
@dataclass(frozen=True)
class Closed:
    """`slopes` without autograd: behind the map stand a norm by stored statistics, an addition or none, ReLU, mean and
    head.

    `rows` [classes, C]: the head's weight times the norm's factor; `captures`: the ReLU; `ceiling`: 6 for ReLU6.
    """

    rows: Tensor
    captures: tuple[Capture]
    ceiling: float

    def __call__(self, out: Out, target: Tensor) -> Tensor:
        gate = by_channel(out.seen[self.captures[0]][-1][1])
        return target @ self.rows.to(target) * ((gate > 0) & (gate < self.ceiling)).float().mean(-1) / gate.shape[-1]


def closed_slopes(teacher: nn.Module, where: Where, pixels: Tensor) -> Closed | None:
    """The closed form of the teacher's slopes where its tail allows it, else None.

    Found by shapes, and taken if it agrees with autograd on `pixels`.
    """
    capture, every = Capture("teacher", where), Capture("teacher", lambda name, module: True)
    device = next(teacher.parameters()).device
    batch = {"pixel_values": pixels[:4].detach().to(device).requires_grad_()}
    with torch.enable_grad(), evaluating(teacher):
        out = run_model(teacher, batch, (capture, every))
    x = out.seen[capture][-1][1]
    by_position(x)
    values = [(m, v) for m, v in out.seen[every] if isinstance(v, Tensor)]
    heads = [m for m, v in values if isinstance(m, nn.Linear) and v.shape == (len(x), out.logits.shape[1])]
    heads = [m for m in heads if m.in_features == x.shape[1]]
    norms = [m for m, v in values if isinstance(m, NORMS) and m.running_var is not None and v.shape == x.shape]
    gates = [(m, v) for m, v in values if type(m) in (nn.ReLU, nn.ReLU6) and v.shape == x.shape]
    if not (heads and norms and gates):
        return None
    gate, value = gates[-1]
    name = next(name for name, module in teacher.named_modules() if module is gate)
    here = Capture("teacher", At((name,)))
    target = torch.randn(out.logits.shape, generator=torch.Generator().manual_seed(0)).to(out.logits)
    known = slopes(teacher, out, capture, batch, target)
    for norm in norms:  # several, where a shortcut has its own; the slopes tell which
        assert norm.running_var is not None
        gain = 1.0 if norm.weight is None else norm.weight
        rows = heads[-1].weight * gain / (norm.running_var + norm.eps).sqrt()
        closed = Closed(rows.detach(), (here,), 6.0 if isinstance(gate, nn.ReLU6) else math.inf)
        formula = closed(Out(out.logits, {here: [(gate, value)]}), target)
        if torch.allclose(formula, known, rtol=1e-3, atol=1e-4 * float(known.abs().max())):
            return closed
    return None
