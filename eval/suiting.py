"""Whether a model can be scored on a kind of data: what it reads, how long, and the form of what it answers."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from zsaq.quant.heads import token_table


def reads(model: nn.Module, name: str, data: str) -> None:
    """Raises ValueError for a model of transformers whose main input is another than `name`."""
    own = getattr(model, "main_input_name", name)
    if own != name:
        raise ValueError(f"{type(model).__name__} reads {own}, not {name}: it cannot be scored on {data}")


def writes(model: PreTrainedModel) -> None:
    """Raises ValueError for what is no causal language model, whose next token is asked for."""
    reads(model, "input_ids", "a text")
    if model.config.is_encoder_decoder or not model.can_generate():
        raise ValueError(f"{type(model).__name__} is no causal language model: perplexity is of those alone")


def counts(optional: bool = False, **given: Any) -> None:
    """Raises ValueError, by name, for what is no integer of at least 1, nor None where that is `optional`."""
    for name, value in given.items():
        if not (optional and value is None) and (type(value) is not int or not 1 <= value < 2**31):
            raise ValueError(f"{name} is {value!r:.50}: give an integer of at least 1{', or none' if optional else ''}")


def covers(model: nn.Module, ids: Tensor | list[int]) -> None:
    """Raises ValueError for token `ids`, shape (n,), that the model's table has no row for."""
    rows, ids = getattr(token_table(model), "num_embeddings", None), torch.as_tensor(ids)
    beyond = ids[(ids < 0) | (ids >= rows)] if isinstance(rows, int) else ids[:0]
    if len(beyond):
        raise ValueError(
            f"the text holds token {int(beyond[0])}, and {type(model).__name__} knows {rows} tokens, from 0 on: give "
            "the tokenizer that the model was trained with"
        )


def logits_of(output: Any, shape: tuple[int, ...], who: str) -> Tensor:
    """The logits in a model's answer. Raises ValueError if they do not begin with `shape` and end with one number for
    each class or token."""
    logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor) or logits.ndim != len(shape) + 1 or tuple(logits.shape[:-1]) != shape:
        found = list(logits.shape) if isinstance(logits, Tensor) else "none"
        raise ValueError(f"{who} answers logits of the shape {found}, not {[*shape, 'classes']}: it has another head")
    return logits
