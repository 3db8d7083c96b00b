"""Blocks whose activations are computed again in the backward pass instead of being kept (Chen et al. 2016, arXiv
1604.06174); of a quantized layer also the weight that it rounded."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from zsaq.train.chain import instead


@contextmanager
def recomputing(model: nn.Module, wanted: bool = True) -> Iterator[None]:
    """Inside, if `wanted`, the model's blocks are computed twice, in eval mode too, where transformers' own switch does
    nothing. Hooks of a block are outside of that and run once.

    Raises ValueError for a model without blocks of transformers' GradientCheckpointingLayer.
    """
    blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)] if wanted else []
    if wanted and not blocks:
        raise ValueError(f"{type(model).__name__} has no blocks that can be computed again: leave recompute off")
    with instead(blocks, [partial(twice, block.forward) for block in blocks]):
        yield


def twice(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A cache is left out: what is computed again would be put into it again."""
    kept = [None if isinstance(value, Cache) else value for value in args]
    named = {name: None if isinstance(value, Cache) else value for name, value in kwargs.items()}
    return checkpoint(partial(forward, **named), *kept, use_reentrant=False)
