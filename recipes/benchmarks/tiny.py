"""Tiny models of transformers with random weights, from their configurations alone, and inputs that they take."""

import dataclasses
from typing import Any, Final

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from recipes.benchmarks.text_models import TEXT
from recipes.benchmarks.vision_models import VISION

VOCABULARY, TOKENS, SIDE, LABELS = 96, 12, 64, ("no", "yes")
SMALL: Final[dict[str, Any]] = {  # what of it a configuration has, under its own names
    **dict.fromkeys(("hidden_size", "embed_dim", "intermediate_size_mlp", "ffn_hidden_size"), 64),
    **dict.fromkeys(("moe_intermediate_size", "d_kv"), 16),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "n_inner", "encoder_ffn_dim", "decoder_ffn_dim"), 128),
    **dict.fromkeys(("num_hidden_layers", "encoder_layers", "decoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("num_encoder_layers",), 2),
    **dict.fromkeys(("num_attention_heads", "encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_encoder_attention_heads", "num_decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_experts_per_tok"), 2),
    **dict.fromkeys(("num_experts", "num_local_experts"), 4),
    "head_dim": 16,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "image_size": SIDE,
    "patch_size": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
    "forced_bos_token_id": None,
}
GAIN: Final = 1.5  # of a layer's random weights: attention scores are of the size that trained nets have


def config_of(name: str) -> PreTrainedConfig:
    kind = getattr(transformers, name).config_class
    known = {field.name for field in dataclasses.fields(kind)}
    small = {name: value for key, value in SMALL.items() for name in (key, kind.attribute_map.get(key, key))}
    own = {key: value for key, value in (TEXT | VISION)[name].items() if key != "model_type"}
    return kind(**{key: value for key, value in small.items() if key in known} | own, id2label=dict(enumerate(LABELS)))


@torch.no_grad()
def tiny(name: str) -> PreTrainedModel:
    """A model of the class `name`: weights of `GAIN` over the root of their fan-in, norms and biases off their starts,
    statistics of BatchNorm that are neither 0 nor 1; the same at every call."""
    torch.manual_seed(0)
    model: Any = getattr(transformers, name)._from_config(config_of(name)).eval()
    for parameter in model.parameters():
        if not parameter.requires_grad or not parameter.numel():
            continue  # a table of sines, which is computed anew when the model is loaded
        if parameter.dim() > 1:
            parameter.normal_(0, GAIN * parameter[0].numel() ** -0.5)
        else:
            parameter.add_(torch.randn_like(parameter) * 0.1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return model


def inputs_of(model: PreTrainedModel, seed: int = 0) -> dict[str, Tensor]:
    """Two random images, or texts, the second of which is padded."""
    rng = torch.Generator().manual_seed(seed)
    if type(model).__name__ in VISION and model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(2, 3, SIDE, SIDE, generator=rng)}
    shape = (2, 3, TOKENS) if type(model).__name__.endswith("MultipleChoice") else (2, TOKENS)
    ids = torch.randint(3, 16 if type(model).__name__ in VISION else VOCABULARY, shape, generator=rng)
    mask = torch.ones_like(ids)
    mask[1:, ..., TOKENS // 2 + 1 :] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if not model.config.is_encoder_decoder:
        return inputs
    ids[:, TOKENS // 2] = SMALL["eos_token_id"]  # where such classifiers look
    if not type(model).__name__.endswith("Classification"):
        return inputs | {"decoder_input_ids": ids.flip(-1)}
    begun = torch.full_like(ids[:, :1], model.config.decoder_start_token_id)  # as these models do, which graphs do not
    return inputs | {"decoder_input_ids": torch.cat([begun, ids[:, :-1]], 1)}


def answers(model: PreTrainedModel, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Every tensor of floats that the model answers, wherever it stands; what draws (masks of an autoencoder) draws
    the same each time."""
    torch.manual_seed(0)
    with torch.no_grad():
        return tensors_in(model(**inputs))


def tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in parts for tensor in tensors_in(part)]
