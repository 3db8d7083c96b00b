"""Tiny models whose attention is given more than query, key, value, mask and scale, with scores as large as in real
nets: with the weights of a fresh model nobody would see what is left out."""

from collections.abc import Callable
from typing import Any, Final

import torch
import transformers as of

VOCABULARY: Final = 200
WINDOW: Final = 8
SHARP: Final = ("q_proj", "k_proj", "query", "key", "c_attn", "qkv", "Wqkv", ".q.", ".k.", "q_b_proj", "kv_b_proj")
BASE: Final[dict[str, Any]] = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 96, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None,
}  # fmt: skip
SHARED: Final[dict[str, Any]] = BASE | {"num_key_value_heads": 2}
GPT2: Final[dict[str, Any]] = {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
T5: Final[dict[str, Any]] = {
    "vocab_size": VOCABULARY,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 96,
    "num_layers": 2,
    "num_heads": 4,
}
HEAD: Final[dict[str, Any]] = {"head_dim": 16}
LOCAL: Final[dict[str, Any]] = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
CAPPED: Final[dict[str, Any]] = {"query_pre_attn_scalar": 16, "attn_logit_softcapping": 20.0}
LATENT: Final[dict[str, Any]] = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12,
    "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 2,
}  # fmt: skip

# By what is special: the class, its config's class, what the config is given, and whether attention is the plain rule.
MODELS: Final[dict[str, tuple[str, str, dict[str, Any], bool]]] = {
    "gemma2: soft-cap": ("Gemma2ForCausalLM", "Gemma2Config", SHARED | HEAD | LOCAL | CAPPED, False),
    "gemma2: none": ("Gemma2ForCausalLM", "Gemma2Config", SHARED | HEAD | {"attn_logit_softcapping": None}, True),
    "gpt_oss: sinks": (
        "GptOssForCausalLM", "GptOssConfig",
        SHARED | HEAD | LOCAL | {"num_local_experts": 4, "num_experts_per_tok": 2}, False,
    ),
    "t5: position bias": ("T5ForTokenClassification", "T5Config", T5, False),
    "gemma3: window": ("Gemma3ForCausalLM", "Gemma3TextConfig", SHARED | HEAD | LOCAL, True),
    "mistral: window": ("MistralForCausalLM", "MistralConfig", SHARED | {"sliding_window": WINDOW}, True),
    "qwen2: window": (
        "Qwen2ForCausalLM", "Qwen2Config", SHARED | LOCAL | {"use_sliding_window": True, "max_window_layers": 1}, True,
    ),
    "phi3: window": ("Phi3ForCausalLM", "Phi3Config", SHARED | {"sliding_window": WINDOW}, True),
    "cohere2: window": ("Cohere2ForCausalLM", "Cohere2Config", SHARED | LOCAL, True),
    "deepseek: narrow values": ("DeepseekV3ForCausalLM", "DeepseekV3Config", SHARED | LATENT, True),
    "granite: own scale": ("GraniteForCausalLM", "GraniteConfig", SHARED | {"attention_multiplier": 0.3}, True),
    "gpt2: scale by layer": (
        "GPT2LMHeadModel", "GPT2Config", GPT2 | {"scale_attn_by_inverse_layer_idx": True}, True,
    ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", SHARED, True),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", SHARED | HEAD, True),
    "phi": ("PhiForCausalLM", "PhiConfig", BASE, True),
    "cohere": ("CohereForCausalLM", "CohereConfig", SHARED, True),
    "opt": ("OPTForCausalLM", "OPTConfig", BASE | {"ffn_dim": 96, "word_embed_proj_dim": 64}, True),
    "modernbert: window": (
        "ModernBertForMaskedLM", "ModernBertConfig",
        BASE | {"pad_token_id": 0, "local_attention": WINDOW, "global_attn_every_n_layers": 2}, True,
    ),
    "t5: both sides": ("T5ForConditionalGeneration", "T5Config", T5, False),
    # These compute attention in their own code, which is traced as it is.
    "bloom: alibi": (
        "BloomForCausalLM", "BloomConfig",
        {"vocab_size": VOCABULARY, "hidden_size": 64, "n_layer": 2, "n_head": 4}, True,
    ),
    "mpt: alibi": (
        "MptForCausalLM", "MptConfig",
        {"vocab_size": VOCABULARY, "d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}, True,
    ),
    "gpt_neo: window": (
        "GPTNeoForCausalLM", "GPTNeoConfig",
        {
            "vocab_size": VOCABULARY, "hidden_size": 64, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 64,
            "window_size": WINDOW, "attention_types": [[["global", "local"], 1]],
        }, True,
    ),
}  # fmt: skip


def sharp(name: str) -> Any:
    """The model, with scores of attention of a deviation of some ten."""
    kind, config, options, _ = MODELS[name]
    torch.manual_seed(0)
    make: Callable[..., Any] = getattr(of, kind)
    model = make(getattr(of, config)(**options)).eval()
    hot = 0.2 if kind.startswith("T5") else 0.5  # T5 does not divide its scores
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if "sinks" in path or "relative_attention_bias" in path:
                parameter.normal_(std=4.0)
            elif parameter.ndim == 2:
                parameter.normal_(std=hot if any(part in path for part in SHARP) else 0.15)
            elif parameter.ndim > 2 or "bias" in path:
                parameter.normal_(std=0.1)
    return model
