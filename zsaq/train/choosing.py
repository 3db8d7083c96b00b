"""Choose instead of climb: of several batches those rows on which the student disagrees most with its teacher."""

from collections.abc import Iterable, Iterator
from typing import Any, Final, Self, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zsaq.train.objectives import RowWise
from zsaq.train.pair import Batch, Pair
from zsaq.train.streams import stream_of

FLUENCY: Final = "fluency"  # of a batch: [B], how likely its generator finds each row; no model is shown it


@final
class Chosen(Iterator[Batch]):
    """Of every `times` batches of a stream as many rows as one holds: those of the largest `objective`.

    Where batches tell a "fluency", the less fluent half of the rows is left out first. It costs a forward pass of both
    models for each batch that is drawn. Each process chooses among its own rows; the place is the stream's. Batches
    have to be alike but for their width, which attention_mask tells.
    """

    def __init__(
        self, batches: Iterable[Batch], teacher: nn.Module, student: nn.Module, objective: RowWise, times: int
    ) -> None:
        if times < 2:
            raise ValueError(f"times is {times}; give at least 2 batches to choose from")
        self.batches, self.models, self.objective, self.times = stream_of(batches), (teacher, student), objective, times

    def __iter__(self) -> Self:
        return self

    @torch.no_grad()
    def __next__(self) -> Batch:
        device = next(self.models[1].parameters()).device
        drawn = [{k: v.to(device) for k, v in next(self.batches).items()} for _ in range(self.times)]
        fluency = [batch.pop(FLUENCY) for batch in drawn if FLUENCY in batch]
        score = torch.cat([self.objective.rows(Pair(*self.models, batch)) for batch in drawn])
        if fluency:
            fluent = torch.cat(fluency)
            score = score.masked_fill(fluent < fluent.median(), -torch.inf)
        size = len(next(iter(drawn[0].values())))
        return trimmed(merged(drawn), score.topk(size).indices)

    def state_dict(self) -> dict[str, Any]:
        return self.batches.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.batches.load_state_dict(state_dict)


def merged(batches: list[Batch]) -> Batch:
    """One batch of all rows; narrower ones are filled up with zeros, which their masks leave out."""

    def wide(parts: list[Tensor]) -> list[Tensor]:
        if parts[0].ndim < 2:
            return parts
        width = max(part.shape[1] for part in parts)
        return [F.pad(part, (*[0, 0] * (part.ndim - 2), 0, width - part.shape[1])) for part in parts]

    return {name: torch.cat(wide([batch[name] for batch in batches])) for name in batches[0]}


def trimmed(batch: Batch, rows: Tensor) -> Batch:
    """The chosen rows, no wider than the widest of them."""
    chosen = {name: value[rows] for name, value in batch.items()}
    mask = chosen.get("attention_mask")
    if mask is None:
        return chosen
    seen = mask.bool().any(0).nonzero()
    width = int(seen.amax()) + 1 if len(seen) else 1
    return {name: value[:, :width] if value.ndim > 1 else value for name, value in chosen.items()}
