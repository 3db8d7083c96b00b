"""Evaluation on several processes: each takes its share of the items, all get all rows back, in order, each once."""

from collections.abc import Sequence
from typing import TypeVar, cast

import torch
from accelerate import Accelerator
from torch import Tensor

Item = TypeVar("Item")


def share(items: Sequence[Item], accelerator: Accelerator | None) -> Sequence[Item]:
    """This process's items: every n-th, so that items sorted by cost are spread evenly. All without accelerator."""
    return items if accelerator is None else items[accelerator.process_index :: accelerator.num_processes]


def ranks(index: list[int], accelerator: Accelerator | None) -> list[int]:
    """The places of the numbers `index` among those of all processes, so that left-out ones leave no gap."""
    numbers = torch.tensor(index, dtype=torch.int64)
    if accelerator is not None and accelerator.num_processes > 1:
        padded = accelerator.pad_across_processes(numbers.to(accelerator.device), pad_index=-1)
        numbers = cast(Tensor, accelerator.gather(padded)).cpu()
    place = {number: rank for rank, number in enumerate(sorted(numbers[numbers >= 0].tolist()))}
    return [place[number] for number in index]


def gather_rows(index: list[int], values: Tensor, total: int, accelerator: Accelerator | None) -> Tensor:
    """All processes' rows `values` (n, width) put at their places `index`: shape (total, width), on the CPU.

    One plain gather at the end and not gather_for_metrics: that one drops rows by the state of whichever prepared
    data loader is being iterated, which inside a training loop is the training's.
    """
    places = torch.tensor(index, dtype=torch.int64, device=values.device)
    if accelerator is not None and accelerator.num_processes > 1:
        padded = accelerator.pad_across_processes(places, pad_index=-1), accelerator.pad_across_processes(values)
        places, values = (cast(Tensor, accelerator.gather(each)) for each in padded)
    places, values = places.cpu(), values.cpu()
    result = torch.empty(total, *values.shape[1:], dtype=values.dtype)
    result[places[places >= 0]] = values[places >= 0]
    assert sorted(places[places >= 0].tolist()) == list(range(total))
    return result
