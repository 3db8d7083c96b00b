"""How much a model's answers tell of its weights, without data: what rounding will cost, before it is done."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from zsaq.train.pair import Batch
from zsaq.train.randomness import generator


def information(
    model: PreTrainedModel, weights: Mapping[str, nn.Parameter], batches: Iterable[Batch], seed: int
) -> dict[str, float]:
    """For each of the `weights`, parameters of `model`, the mean diagonal of its Fisher information for an answer:
    E (d log p(y) / d w)^2 over answers y that are drawn from the model's own.

    Each row of the batches is read alone, in full precision, and a gradient goes as soon as it is counted. The answers
    of a row are drawn independently, so their gradients' cross terms are zero in the mean and one pass back does for
    all of them. Several processes add up what each has seen. Raises ValueError where answers or gradients are not
    finite.
    """
    rng, answers = generator(seed), torch.zeros((), dtype=torch.float64)
    sums = {name: torch.zeros((), dtype=torch.float64) for name in weights}
    with counted(model, weights, sums):
        for batch in batches:
            for row in range(len(next(iter(batch.values())))):
                one = {key: value[row : row + 1].to(model.device) for key, value in batch.items()}
                logits = model(**one).logits
                if logits.ndim == 3:
                    logits = logits[one["attention_mask"].bool()] if "attention_mask" in one else logits[0]
                if not logits.isfinite().all():
                    raise ValueError(
                        f"{type(model).__name__} answers numbers that are not finite, by which no bits can be chosen: "
                        "give a configuration for all layers, such as w4a16, or a model that works"
                    )
                drawn = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=rng)[:, 0]
                F.cross_entropy(logits, drawn.to(logits.device), reduction="sum").backward()
                answers += len(logits)
    total: Any = reduce(torch.stack([answers, *sums.values()]).to(PartialState().device), "sum")
    means = (total[1:] / total[0]).tolist()
    if broken := [name for name, mean in zip(weights, means, strict=True) if not math.isfinite(mean)]:
        raise ValueError(
            f"the gradients of {', '.join(broken[:4])} are not finite, by which no bits can be chosen: give a "
            "configuration for all layers, such as w4a16, or a model that works"
        )
    return {name: mean / weight.numel() for (name, weight), mean in zip(weights.items(), means, strict=True)}


@contextmanager
def counted(model: nn.Module, weights: Mapping[str, nn.Parameter], sums: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, every pass back adds the squares of each weight's gradient to its sum, and keeps no gradient."""
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}

    def hook(total: Tensor):
        def count(parameter: Tensor) -> None:
            assert parameter.grad is not None
            total.add_(parameter.grad.double().square().sum().cpu())
            parameter.grad = None

        return count

    for parameter in flags:
        parameter.requires_grad_(False)
    handles = [
        weight.requires_grad_(True).register_post_accumulate_grad_hook(hook(sums[name]))
        for name, weight in weights.items()
    ]
    try:
        with torch.enable_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
