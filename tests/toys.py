"""Tiny models for tests: random weights, eager to build."""

from typing import Any

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
)

VOCABULARY = 96


def bert(labels: int = 3, layers: int = 2) -> Any:
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, id2label={i: str(i) for i in range(labels)},
    )  # fmt: skip
    return spread(BertForSequenceClassification(config))


def gpt2() -> Any:
    ids: Any = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    return spread(
        GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, n_positions=64, **ids))
    )


def opt() -> Any:
    config = OPTConfig(
        vocab_size=VOCABULARY, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=2,
        word_embed_proj_dim=32, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    return spread(OPTForCausalLM(config))


def llama() -> Any:
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=1, tie_word_embeddings=False,
    )  # fmt: skip
    return spread(LlamaForCausalLM(config))


def spread(model: PreTrainedModel) -> Any:
    """Weights larger than at initialisation, so that answers differ between inputs and rounding shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.25)
    return model.eval()


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 24), nn.LayerNorm(24), nn.ReLU(), nn.Linear(24, 4)).eval()


def batches(n: int, size: int = 8, length: int = 10, seed: int = 0, pad: bool = False) -> list[dict[str, torch.Tensor]]:
    rng = torch.Generator().manual_seed(seed)
    inputs = []
    for _ in range(n):
        mask = torch.ones(size, length, dtype=torch.int64)
        if pad:
            mask[: size // 2, length // 2 :] = 0
        ids = torch.randint(2, VOCABULARY, (size, length), generator=rng)
        inputs.append({"input_ids": ids, "attention_mask": mask})
    return inputs
