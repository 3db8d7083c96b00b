"""Students of tiny language models in every kind of configuration, and what they answer, bit for bit."""

from collections.abc import Callable

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
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

from zsaq.quant.config import Grid, QuantConfig
from zsaq.quant.model import quantize_model
from zsaq.train.trainer import calibrate

VOCABULARY = 200


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting threads takes longer than reading these small files."""
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")


BERT = BertConfig(
    vocab_size=VOCABULARY,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=48,
    max_position_embeddings=24,
)
TEACHERS: dict[str, Callable[[], PreTrainedModel]] = {
    "bert": lambda: BertForSequenceClassification(BERT),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, n_positions=24, bos_token_id=0, eos_token_id=0
        )
    ),
    "opt": lambda: OPTForCausalLM(
        OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            word_embed_proj_dim=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            ffn_dim=48,
            max_position_embeddings=24,
        )
    ),
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=24,
        )
    ),
}
TABLES = {"gpt2": "transformer.wte", "opt": "model.decoder.embed_tokens"}
CONFIGS = {
    "w2a8": QuantConfig.parse("w2a8"),
    "w2a8-ternary": QuantConfig.parse("w2a8-ternary"),
    "w2a8-integer": QuantConfig.parse("w2a8-integer"),
    "w3a16": QuantConfig.parse("w3a16"),
    "w4a8g16": QuantConfig.parse("w4a8g16"),
    "w8a8": QuantConfig.parse("w8a8"),
    "asymmetric": QuantConfig(
        weight=Grid(4, symmetric=False),
        input=Grid(8, symmetric=False, per="token"),
        embedding=Grid(3, symmetric=False, per=4),
    ),
    "static": QuantConfig(weight=Grid(5, per="tensor"), input=Grid(8, per="tensor"), ranges="minmax"),
    "learned": QuantConfig(weight=Grid(2, levels="half"), input=Grid(4, per=8), ranges="learned"),
}
IDS = torch.arange(36).reshape(3, 12) * 5 % VOCABULARY


def student_of(family: str, config: QuantConfig) -> PreTrainedModel:
    """A student whose weights have moved since it was made, as training moves them."""
    student = quantize_model(TEACHERS[family]().eval(), config)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    calibrate(student, [{"input_ids": IDS}], Accelerator(cpu=True))
    assert isinstance(student, PreTrainedModel)
    return student


@torch.no_grad()
def bits(model: nn.Module, ids: Tensor = IDS) -> Tensor:
    return model(ids).logits.view(torch.int32)
