"""What llama.cpp calls a model's parts, and what it is told of them: a row of `FAMILIES` for each kind that it computes
as transformers does. What a config says otherwise is refused, since llama.cpp would pass over it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, final

import gguf
import torch
from transformers import PreTrainedModel

from zsaq.deploy.checkpoint import refused

Config = Any
CAUSAL: Final = {"use_bidirectional_attention": False}
TANH: Final = ("gelu_new", "gelu_pytorch_tanh")


@final
@dataclass(frozen=True)
class Family:
    """`arch`: its name in GGUF; `activations`: those that llama.cpp has for it; `fixed`: what else it takes for
    granted of a config, name by name; `turned`: rows of queries and keys lie in pairs that rotate together;
    `shift`: what norms are stored with beside their weights; `more(config, writer)`: what it alone is told."""

    arch: str
    activations: tuple[str, ...] = ("silu",)
    fixed: Callable[[Config], Mapping[str, Any]] = lambda config: {}
    turned: bool = False
    shift: float = 0.0
    more: Callable[[Config, gguf.GGUFWriter], None] = lambda config, writer: None


def heads(config: Config) -> int:
    """Features of a head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def windowless(config: Config) -> dict[str, Any]:
    return {"use_sliding_window": False, "layer_types": ["full_attention"] * config.num_hidden_layers}


def scalar(config: Config, largest: int) -> int:
    """What queries are scaled by, squared: llama.cpp knows the largest of the kind by its number of layers."""
    return config.hidden_size // config.num_attention_heads if config.num_hidden_layers == largest else heads(config)


def gemma2(config: Config, writer: gguf.GGUFWriter) -> None:
    if None in (config.attn_logit_softcapping, config.final_logit_softcapping, config.sliding_window):
        raise refused("llama.cpp takes soft caps and a window for granted in Gemma 2, and this model lacks one")
    writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_sliding_window(config.sliding_window)


def gemma3(config: Config, writer: gguf.GGUFWriter) -> None:
    if config.sliding_window is None:
        raise refused("llama.cpp takes a window for granted in Gemma 3, and this model has none")
    writer.add_sliding_window(config.sliding_window)


def layers(config: Config, every: int) -> list[str]:
    """Windows of attention in all layers but each `every`-th."""
    count = range(1, config.num_hidden_layers + 1)
    return ["sliding_attention" if i % every else "full_attention" for i in count]


FAMILIES: Final = {
    "llama": Family("llama", turned=True),
    "mistral": Family("llama", turned=True),
    "qwen2": Family("qwen2", fixed=windowless),
    "qwen3": Family("qwen3", fixed=lambda c: windowless(c) | {"attention_bias": False}),
    "gemma": Family("gemma", TANH, lambda c: {"attention_bias": False}, shift=1.0),
    "gemma2": Family(
        "gemma2", TANH, lambda c: {"query_pre_attn_scalar": scalar(c, 46), "layer_types": layers(c, 2)} | CAUSAL,
        shift=1.0, more=gemma2,
    ),
    "gemma3_text": Family(
        "gemma3", TANH,
        lambda c: {
            "query_pre_attn_scalar": scalar(c, 62), "layer_types": layers(c, 6), **CAUSAL,
            "attn_logit_softcapping": None, "final_logit_softcapping": None,
        },
        shift=1.0, more=gemma3,
    ),
    "phi3": Family("phi3"),
    "gpt2": Family("gpt2", TANH, lambda c: {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}),
}  # fmt: skip
"""By `model_type`."""


def family_of(config: Config) -> Family:
    """Raises ValueError for a model that llama.cpp does not know, or that it would compute in another way."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise refused(f"a {config.model_type} has no place in GGUF here; those of {', '.join(FAMILIES)} have")
    acts = [getattr(config, n, None) for n in ("hidden_act", "hidden_activation", "activation_function")]
    if odd := [act for act in acts if act not in (None, *family.activations)]:
        raise refused(f"llama.cpp computes a {config.model_type} with {family.activations[-1]}, this has {odd[0]!r}")
    for name, value in family.fixed(config).items():
        got = getattr(config, name, value)
        if got != value and not (got is None and value is False):
            raise refused(f"llama.cpp takes {name}={value!r} for granted, this model has {got!r}")
    return family


def rotation(config: Config) -> dict[str, Any]:
    """How positions turn queries and keys; of Gemma 3 in its layers without a window. Raises ValueError for a kind that
    is not written here."""
    told: Any = getattr(config, "rope_parameters", None) or {}
    if windows := told.get("sliding_attention"):
        if windows.get("rope_theta") != 10_000.0 or windows.get("rope_type", "default") != "default":
            raise refused(f"llama.cpp takes a rope_theta of 10000 within windows for granted, this has {windows}")
        told = told["full_attention"]
    if config.model_type != "phi3" and told.get("partial_rotary_factor", 1.0) != 1.0:
        raise refused(f"llama.cpp turns all of a head in a {config.model_type}, and this model a part of it")
    if (kind := told.get("rope_type", "default")) not in ("default", "linear", "llama3"):
        raise refused(f"positions of the kind {kind!r} are not written to GGUF here; default, linear and llama3 are")
    return dict(told)


def frequencies(model: PreTrainedModel) -> torch.Tensor | None:
    """How many times slower each pair turns than its theta says, float32 [heads / 2]; None where none does."""
    told = rotation(model.config)
    if told.get("rope_type") != "llama3":
        return None
    if family_of(model.config).arch != "llama":
        raise refused(f"llama.cpp has no place for positions of the kind 'llama3' in a {model.config.model_type}")
    rotary: Any = model.base_model.rotary_emb
    turns = rotary.inv_freq.float()
    count = 2 * len(turns)
    return told["rope_theta"] ** (-torch.arange(0, count, 2, dtype=torch.float32) / count) / turns


def arch_of(family: Family) -> gguf.MODEL_ARCH:
    return next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == family.arch)


def describe(config: Config, family: Family, writer: gguf.GGUFWriter) -> list[str]:
    """Tell `writer` of the model; answers what differs from it, in words."""
    context, window, changed = config.max_position_embeddings, getattr(config, "sliding_window", None), list[str]()
    if family.arch in ("llama", "phi3") and window is not None and window < context:
        context = window
        changed.append(f"llama.cpp has no windows of attention for it: up to {window} tokens, where both are the same")
    writer.add_context_length(context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    name = "n_inner" if family.arch == "gpt2" else "intermediate_size"
    writer.add_feed_forward_length(getattr(config, name) or 4 * config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    if family.arch == "gpt2":
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        told, size = rotation(config), heads(config)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_key_length(size)
        writer.add_value_length(size)
        writer.add_rope_dimension_count(int(size * told.get("partial_rotary_factor", 1.0)))
        writer.add_rope_freq_base(told.get("rope_theta", 10_000.0))
        if told.get("rope_type") == "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(told["factor"])
    family.more(config, writer)
    return changed
