"""A block of the student beside its twin of the teacher: what each is called with, and what the twin answers, over all
samples. A block's calls may have any arguments; what counts is the first tensor."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zsaq.train.pair import Batch, run_model

Args = tuple[tuple, dict[str, Any]]  # args and kwargs


class Reached(Exception):
    """Ends a forward pass at the block: what comes after is of no use."""


@dataclass(frozen=True)
class SampleRows:
    """A tensor of a call with a row for each sample, over all samples."""

    all: Tensor


@dataclass(frozen=True)
class Calls:
    """A block's calls over N samples: `x`, `y` [N, ...] of the teacher, `seen` [N, ...] of the student.

    x and seen are the first tensor of the call; `args`, `kwargs` its other values as the student's block gets them.
    `counts` [N, L] or [N] bool: the positions that do, where not all of them do. `channels`: the axis of y that they
    are on.
    """

    x: Tensor
    y: Tensor
    seen: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    counts: Tensor | None = None
    channels: int = -1

    def error(self, miss: Tensor, rows: Tensor) -> Tensor:
        """Of what the answers of these rows miss, the mean over samples and positions of the squares' sum."""
        squares = miss.square().sum(self.channels)
        if self.counts is None:
            return squares.mean()
        counts = self.counts[rows.to(self.counts.device)].to(squares)
        return (squares * counts).sum() / counts.sum().clamp_min(1)

    @torch.no_grad()
    def missed(self, block: nn.Module, size: int, device: torch.device) -> float:
        """The error over all samples, `size` at a time, of what `block` answers to the student's own calls."""
        total, weight = 0.0, 0.0
        for rows in torch.arange(len(self.x), device=self.x.device).split(size):
            seen, y = (states[rows].to(device) for states in (self.seen, self.y))
            counted = len(rows) if self.counts is None else self.counts[rows.to(self.counts.device)].sum().item()
            total += counted * self.error(self.run(block, rows, seen).float() - y, rows).item()
            weight += counted
        return total / max(weight, 1)

    def run(self, block: nn.Module, rows: Tensor, first: Tensor) -> Tensor:
        """What `block` answers to the calls of these rows, with `first` as their first tensor."""
        args, kwargs = (_rows(values, rows, first.device) for values in (self.args, self.kwargs))
        if not args:
            return first_of(block(**{next(iter(kwargs)): first}, **dict(list(kwargs.items())[1:])))
        return first_of(block(first, *args[1:], **kwargs))


def collected(
    before: Sequence[Args], after: Sequence[Tensor], own: Sequence[Args], budget: int, device: torch.device,
    masks: Sequence[Tensor | None], channels: int,
) -> Calls:  # fmt: skip
    """Of the calls of a teacher's twin and its answers, and of the student's own calls, batch by batch; on the device
    if they fill at most `budget` bytes. `masks`: which positions count; `channels`: the axis of the answers'."""
    seen = [first_of(args or tuple(kwargs.values())).cpu() for args, kwargs in own]
    sizes = [len(x) for x in seen]
    tensors = [
        torch.cat([first_of(args or tuple(kwargs.values())).cpu() for args, kwargs in before]),
        torch.cat([answer.float().cpu() for answer in after]),
        torch.cat(seen),
    ]
    if sum(t.nbytes for t in tensors) <= budget:
        tensors = [t.to(device) for t in tensors]
    counted = [positions(mask, x) for mask, x in zip(masks, seen, strict=True)]
    known = [counts.cpu() for counts in counted if counts is not None]
    # What else a call holds; where the first tensor stood is left empty.
    others = [replaced(call, None) for call in own]
    places, named = zip(*others, strict=True)
    x, y, here = tensors
    counts = torch.cat(known) if len(known) == len(sizes) else None
    return Calls(x, y, here, _stack(places, sizes), _stack(named, sizes), counts, channels)


def masks_of(model: nn.Module, blocks: Sequence[nn.Module], batches: Sequence[Batch]) -> list[Tensor | None]:
    """Which positions of each batch count, [B, L], None for all. Raises ValueError for padding before blocks of a
    decoder that has an encoder: their layers read states of both, and where these are as long, nothing tells whose."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        encoder: Any = model.get_encoder()  # type: ignore[operator]
        sides = [
            batch[side] for batch in batches for side in ("attention_mask", "decoder_attention_mask") if side in batch
        ]
        if not set(blocks) <= set(encoder.modules()) and not all(mask.all() for mask in sides if mask.ndim == 2):
            raise ValueError(
                f"the batches of {type(model).__name__} hold padding, and blocks of its decoder read two texts, of "
                "which one mask does not tell: give batches without padding, of rows that are equally long"
            )
    return [batch.get("attention_mask") for batch in batches]


def positions(mask: Tensor | None, states: Tensor) -> Tensor | None:
    """Which positions of `states` [B, L, d] count, bool; of [B * L, d] too, since a block may put its rows behind each
    other. None where there is no mask, or one of something else."""
    shape = states.shape[:-1]
    return mask.bool().reshape(shape) if mask is not None and shape in (mask.shape, (mask.numel(),)) else None


def channels_of(block: nn.Module, answer: Tensor) -> int:
    """The axis of a block's channels: the second of maps, the last of all else, as of a Linear on [B, H, W, C]."""
    return 1 if answer.ndim == 4 and not isinstance(block, nn.Linear) else -1


def with_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The structure with its tensors changed; what else it holds is the same."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: with_tensors(each, change) for key, each in value.items()}
    if not isinstance(value, tuple | list):
        return value
    parts = (with_tensors(each, change) for each in value)
    make = getattr(value, "_make", type(value))  # a named tuple's takes one by one
    return make(parts)


def duplicate(value: Any) -> Any:
    """The structure with tensors of its own, for a block that may write into them."""
    return with_tensors(value, Tensor.clone)


def replaced(call: Args, first: Tensor | None) -> Args:
    """A call with another first value."""
    args, kwargs = call
    if args:
        return (first, *args[1:]), kwargs
    return (), {key: first if number == 0 else value for number, (key, value) in enumerate(kwargs.items())}


@torch.no_grad()
def call_of(model: nn.Module, block: nn.Module, batch: Batch, answers: bool) -> tuple[tuple, dict[str, Any], Any]:
    """Arguments and, if asked for, the answer of the block's first call in a pass of the model that ends there."""
    calls: list[Args] = []

    def reached(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        calls.append((args, kwargs))
        raise Reached

    handle = block.register_forward_pre_hook(reached, with_kwargs=True)
    try:
        run_model(model, {**batch, **without_cache(model)})
    except Reached:
        pass
    finally:
        handle.remove()
    if not calls:
        raise ValueError(f"a block of type {type(block).__name__} is not reached by a forward pass; leave it out")
    if not answers:
        return *calls[0], None
    args, kwargs = duplicate(calls[0])
    return *calls[0], block(*args, **kwargs)


def without_cache(model: nn.Module) -> Any:
    """What a pass is given besides its batch: a cache of keys in a call would grow whenever the call is repeated."""
    return {"use_cache": False} if getattr(getattr(model, "config", None), "use_cache", False) else {}


def first_of(value: Any) -> Tensor:
    """The first of several values, or the one. Raises ValueError where it is no tensor."""
    value = value[0] if isinstance(value, tuple) else value
    if not isinstance(value, Tensor):
        raise ValueError(f"a block's first value is a {type(value).__name__}, not a tensor; choose another block")
    return value


def even(batches: Sequence[Batch]) -> list[Batch]:
    """Batches of text with rows of one length, padded behind, and padding in each of them or in none: on that hangs
    what a model makes of its mask, and all calls of a block are to be of one form. A batch without any leaves out its
    first row's last position."""
    if any("input_ids" not in batch for batch in batches):
        return list(batches)
    length = max(batch["input_ids"].shape[1] for batch in batches)
    made: list[Batch] = []
    for batch in batches:
        ids = batch["input_ids"]
        made.append({"attention_mask": torch.ones_like(ids)} | batch)
        for key, value in made[-1].items():
            if value.shape == ids.shape:
                made[-1][key] = F.pad(value, (0, length - value.shape[1]))
    if not all(batch["attention_mask"].all() for batch in made):
        for batch in made:
            if batch["attention_mask"].all():
                batch["attention_mask"] = batch["attention_mask"].clone()
                batch["attention_mask"][0, -1] = 0
    return made


def _stack(values: Sequence[Any], sizes: Sequence[int]) -> Any:
    """One structure for those of all chunks: tensors with a row for each sample as Rows, else the first chunk's."""
    head = values[0]
    if isinstance(head, Tensor) and all(v.ndim and len(v) == n for v, n in zip(values, sizes, strict=True)):
        return SampleRows(torch.cat([v.cpu() for v in values]))
    if isinstance(head, dict):
        return {key: _stack([v[key] for v in values], sizes) for key in head}
    if isinstance(head, tuple | list):
        return tuple(_stack(part, sizes) for part in zip(*values, strict=True))
    return head


def _rows(value: Any, rows: Tensor, device: torch.device) -> Any:
    """The structure for a mini-batch of these rows."""
    if isinstance(value, SampleRows):
        return value.all[rows.to(value.all.device)].to(device)
    if isinstance(value, dict):
        return {key: _rows(v, rows, device) for key, v in value.items()}
    return tuple(_rows(v, rows, device) for v in value) if isinstance(value, tuple) else value
