"""Inputs that a model takes, without any data: for traces, timings, parity, and what `save` compares."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from zsaq.quant.heads import token_table


def image_shape(model: PreTrainedModel) -> tuple[int, int, int]:
    """Channels, height and width, by the model's config; 3 and 224 where that tells none."""
    config = model.config.to_dict()
    size: Any = config.get("image_size", 224)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return config.get("num_channels", 3), height, width


def text_limit(model: PreTrainedModel) -> int:
    """The most tokens that the model takes, by its config; 2048 if that tells none."""
    config = model.config
    name = config.attribute_map.get("max_position_embeddings", "max_position_embeddings")
    return config.to_dict().get(name) or 2048


def random_inputs(model: PreTrainedModel, shape: tuple[int, ...], seed: int = 0) -> dict[str, Tensor]:
    """Random tokens and token types of `shape` (batch, tokens), or noise as `shape` (batch,) images.

    Raises ValueError for another shape, longer than the model takes, and for a model that reads neither.
    """
    rng, kind = torch.Generator().manual_seed(seed), type(model).__name__
    image = model.main_input_name == "pixel_values"
    if len(shape) != (1 if image else 2) or min(shape) < 1:
        raise ValueError(f"the shape is {shape}; give {'(batch,)' if image else '(batch, tokens)'} for {kind}")
    if image:
        return {"pixel_values": torch.randn(shape[0], *image_shape(model), generator=rng)}
    table = token_table(model)
    if model.main_input_name != "input_ids" or table is None or model.config.is_encoder_decoder:
        raise ValueError(f"{kind} reads neither images nor one text, and no inputs are known for others")
    if shape[1] > text_limit(model):
        raise ValueError(f"{kind} takes {text_limit(model)} tokens; {shape} has more")
    rows: Any = table.num_embeddings  # an embedding's own, also where it has become an operator
    ids = torch.randint(0, rows, shape, generator=rng)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if (types := model.config.to_dict().get("type_vocab_size", 0)) > 1:
        inputs["token_type_ids"] = torch.randint(0, types, shape, generator=rng)
    return inputs
