"""What the student should match. Objectives add and scale: `KL() + 0.1 * HiddenStates(BertLayer)`."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zsaq.train.pair import Capture, Pair
from zsaq.train.positions import by_position


class Objective(ABC):
    """A scalar of a Pair, with the captures it needs.

    Ours are means over the batch's rows of what each row gives alone, so that micro-batches of as many rows and
    processes that share a batch take the very step of the whole batch, however long the rows are.
    """

    captures: tuple[Capture, ...] = ()

    @abstractmethod
    def __call__(self, pair: Pair) -> Tensor: ...

    def __add__(self, other: "Objective") -> "Sum":
        return Sum(((1.0, self), (1.0, other)))

    def __mul__(self, weight: float) -> "Sum":
        return Sum(((float(weight), self),))

    __rmul__ = __mul__


@final
class Sum(Objective):
    """A weighted sum of objectives; a weight of 0 is not computed."""

    def __init__(self, parts: tuple[tuple[float, Objective], ...]) -> None:
        flat = []
        for weight, part in parts:
            flat += [(weight * w, p) for w, p in part.parts] if isinstance(part, Sum) else [(weight, part)]
        self.parts = tuple((w, p) for w, p in flat if w != 0)
        self.captures = tuple(dict.fromkeys(capture for _, part in self.parts for capture in part.captures))
        kinds = [type(part).__name__ for _, part in self.parts]
        before = [kinds[:place].count(kind) for place, kind in enumerate(kinds)]
        self.names = [f"{kind} {count + 1}" if count else kind for kind, count in zip(kinds, before, strict=True)]

    def weighted(self, pair: Pair) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum, and its parts without their weights for the log, by class name, a second of a class as "KL 2"."""
        values = [part(pair) for _, part in self.parts]
        total = torch.stack([weight * value for (weight, _), value in zip(self.parts, values, strict=True)]).sum()
        return total, {name: value.detach() for name, value in zip(self.names, values, strict=True)}

    def __call__(self, pair: Pair) -> Tensor:
        return self.weighted(pair)[0]


class RowWise(Objective):
    """An objective that is the mean of what each row gives."""

    @abstractmethod
    def rows(self, pair: Pair) -> Tensor:
        """[B]"""

    @final
    def __call__(self, pair: Pair) -> Tensor:
        return self.rows(pair).mean()


def _row_means(values: Tensor, mask: Tensor) -> Tensor:
    """Each row's mean of values [B, ...] where mask (same shape) holds."""
    values, mask = values.reshape(len(values), -1), mask.reshape(len(mask), -1)
    return torch.where(mask, values, 0).sum(1) / mask.sum(1).clamp_min(1)


def relative_error(p: Tensor, q: Tensor, mask: Tensor) -> Tensor:
    """Mean over rows of ||p - q||^2 / ||p||^2, p and q [B, ...] where mask (broadcast to them) holds."""
    mask = mask.expand_as(p).flatten(1)
    p, q = p.float().flatten(1), q.float().flatten(1)
    miss, size = (torch.where(mask, x, 0).square().sum(1) for x in (p - q, p))
    return (miss / size.detach().clamp_min(1e-12)).mean()


@final
class KL(RowWise):
    """T^2 * KL(P || Q) of softmax(logits / T), mean over rows; with a position axis, each row's is the mean over its
    positions that are not padding.

    P is the teacher with direction "forward", the student with "reverse" (Hinton et al. 2015, arXiv 1503.02531).
    Logits: [B, C] or [B, L, V]. Raises ValueError for a temperature that is not positive.
    """

    def __init__(self, temperature: float = 1.0, direction: Literal["forward", "reverse"] = "forward") -> None:
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; give a positive number")
        if direction not in ("forward", "reverse"):
            raise ValueError(f"direction is {direction!r}; give 'forward' (teacher || student) or 'reverse'")
        self.temperature, self.direction = temperature, direction

    def rows(self, pair: Pair) -> Tensor:
        divergence = by_position(self.divergence, pair.teacher.logits, pair.student.logits)
        return self.temperature**2 * _row_means(divergence, pair.mask)

    def divergence(self, teacher: Tensor, student: Tensor) -> Tensor:
        if teacher.shape[-1] == 1:
            raise ValueError("the models answer one number, of which KL is always 0: give a model of several classes")
        p, q = (F.log_softmax(logits / self.temperature, -1) for logits in (teacher, student))
        if self.direction == "reverse":
            p, q = q, p
        return F.kl_div(q, p, reduction="none", log_target=True).sum(-1)


@final
class LogitL1(RowWise):
    """Mean over rows of |teacher - student|, a row's mean over its logits at positions that are not padding."""

    def rows(self, pair: Pair) -> Tensor:
        return _row_means((pair.teacher.logits - pair.student.logits).abs().mean(-1), pair.mask)


@final
class LogitMSE(RowWise):
    """Mean over rows of the squared difference of the logits."""

    def rows(self, pair: Pair) -> Tensor:
        return _row_means((pair.teacher.logits - pair.student.logits).square().mean(-1), pair.mask)


@final
class RelativeMSE(Objective):
    """`LogitMSE` as a share of how far the teacher's own logits lie apart in the batch, their variance: one weight
    beside other objectives serves scores of 0 to 1 and a reranker's of -10 to 10.

    A variance below a hundredth of the mean square, as of a single row, is taken for that. Micro-batches and processes
    take the mean of theirs.
    """

    def __call__(self, pair: Pair) -> Tensor:
        p, mask = pair.teacher.logits.detach(), pair.mask
        spread = p[mask].var(0, unbiased=False).mean().clamp_min(0.01 * p[mask].square().mean()).clamp_min(1e-12)
        return _row_means((p - pair.student.logits).square().mean(-1), mask).mean() / spread


def _captures(where: type | Callable[[str, nn.Module], bool]) -> tuple[Capture, Capture]:
    return Capture("teacher", where), Capture("student", where)


@final
class HiddenStates(Objective):
    """Sum over the captured blocks of ||h_P - h_Q||^2 / ||h_P||^2, mean over rows; a row's norms are over [L, d] where
    there is no padding.

    Divided by the teacher's own size, so that one weight serves every depth and model; Zhang et al. 2020
    (TernaryBERT, arXiv 2009.12812, eq. 7) take the plain mean.
    """

    def __init__(self, where: type | Callable[[str, nn.Module], bool]) -> None:
        self.captures = _captures(where)

    def __call__(self, pair: Pair) -> Tensor:
        mask = pair.batch.get("attention_mask")
        total = []
        for (_, p), (_, q) in zip(
            pair.teacher.seen[self.captures[0]], pair.student.seen[self.captures[1]], strict=True
        ):
            keep = torch.ones((), dtype=torch.bool, device=p.device) if mask is None else mask.bool()[..., None]
            total.append(relative_error(p, q, keep))
        return torch.stack(total).sum()


@final
class LayerWise(Objective):
    """ZeroQuant's layer-wise distillation (Yao et al. 2022, arXiv 2206.01861, sec. 4.3), all layers at once.

    Every student block is fed what the teacher's block was fed and matches what it answered; no gradient crosses
    blocks, so one backward pass trains each alone. Sum over blocks of the error that `HiddenStates` defines.
    """

    def __init__(self, blocks: type) -> None:
        self.blocks = blocks
        self.captures = (Capture("teacher", blocks, "input"), Capture("teacher", blocks), Capture("student", blocks))
        self.error = HiddenStates(blocks)

    def __call__(self, pair: Pair) -> Tensor:
        fed = iter([value for _, value in pair.teacher.seen[self.captures[0]]])

        def feed(module, args, kwargs):
            value = next(fed)
            if args:
                return (value.to(args[0].dtype), *args[1:]), kwargs
            name = next(iter(kwargs))
            return args, {**kwargs, name: value.to(kwargs[name].dtype)}

        blocks = [m for m in pair.models[1].modules() if isinstance(m, self.blocks)]
        handles = [block.register_forward_pre_hook(feed, with_kwargs=True) for block in blocks]
        try:
            return self.error(pair.again())
        finally:
            for handle in handles:
                handle.remove()


def labels_of(pair: Pair) -> Tensor:
    """The batch's labels: int64 [B], or soft float [B, C]. Raises ValueError if there are none."""
    if "labels" not in pair.batch:
        raise ValueError(
            f"this objective needs labels, and the batch has only {list(pair.batch)}; add 'labels': "
            "int64 [B] or soft float [B, C]"
        )
    return pair.batch["labels"]


@final
class CE(Objective):
    """Cross-entropy of the student with the batch's labels, int64 [B] or soft float [B, C]; mean over samples.

    Logits: [B, C]. Raises ValueError if the batch has no labels.
    """

    def __call__(self, pair: Pair) -> Tensor:
        return F.cross_entropy(pair.student.logits, labels_of(pair))


@final
class AtWorstInput(Objective):
    """`objective` at x + epsilon * sign(g), g its gradient at x through teacher and student: one step, no clamping.

    Both models answer anew there, so that the teacher tells what is right for the moved input. HAST's sample difficulty
    promotion (Li et al. 2023, arXiv 2303.13826). `epsilon` is in units of batch["pixel_values"], which is what moves;
    the step itself is a constant. Costs a forward and a backward pass of both models more than `objective`. Raises
    ValueError for an epsilon that is not positive, and if the batch has no pixel_values.
    """

    def __init__(self, objective: Objective, epsilon: float) -> None:
        if not 0 < epsilon < math.inf:
            raise ValueError(f"epsilon is {epsilon!r}; give a positive number, in units of the normalised pixels")
        self.objective, self.epsilon, self.captures = objective, epsilon, objective.captures

    def __call__(self, pair: Pair) -> Tensor:
        if "pixel_values" not in pair.batch:
            raise ValueError(f"the batch has only {list(pair.batch)}; there is no pixel_values to move")
        x = pair.batch["pixel_values"]
        with torch.enable_grad():
            here = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.objective(pair.at(pixel_values=here)), here)
        return self.objective(pair.at(pixel_values=x + self.epsilon * slope.sign()))
