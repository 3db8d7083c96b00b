"""Peers in `zsaq bench` leave heads in floats, as their users do, and tell which."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

from exported import tiny_bert
from zsaq.deploy.timing import Bench, int8, linear_heads, nf4, torch_run
from zsaq.io.inputs import random_inputs

SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
    "max_position_embeddings": 24,
}  # fmt: skip


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=64, n_layer=1, n_head=2, n_positions=24))


def roberta() -> PreTrainedModel:
    return RobertaForSequenceClassification(RobertaConfig(**SIZES, pad_token_id=1))


def vit() -> PreTrainedModel:
    sizes = {name: SIZES[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    return ViTForImageClassification(ViTConfig(**sizes, intermediate_size=64, image_size=16, patch_size=8))


HEADS = {
    tiny_bert: ("classifier",),
    roberta: ("classifier.dense", "classifier.out_proj"),
    gpt2: ("lm_head",),
    vit: ("classifier",),
    lambda: BertForMaskedLM(BertConfig(**SIZES)): ("cls.predictions.transform.dense", "cls.predictions.decoder"),
}
EACH = pytest.mark.parametrize(
    ("make", "heads"), HEADS.items(), ids=["bert", "roberta", "gpt2", "vit", "masked"]
)  # fmt: skip


def subject(model: PreTrainedModel, work: Path) -> Bench:
    model.eval().save_pretrained(work / "floats")
    return Bench(model, work, work, 1)


@EACH
def test_int8_of_torchao_leaves_the_heads(
    make: Any, heads: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def quantize(model: nn.Module, config: Any, chosen: Any) -> None:
        seen.extend(name for name, layer in model.named_modules() if chosen(layer, name))

    fake: Any = ModuleType("torchao.quantization")
    fake.quantize_, fake.Int8DynamicActivationInt8WeightConfig = quantize, lambda: None
    monkeypatch.setitem(sys.modules, "torchao", ModuleType("torchao"))
    monkeypatch.setitem(sys.modules, "torchao.quantization", fake)
    made = int8(subject(model := make(), tmp_path))
    assert made.in_floats == linear_heads(model) == heads
    linear = {name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    assert set(seen) == linear - set(heads)
    whole = sum(4 * p.numel() for p in model.parameters())
    saved = sum(3 * model.get_parameter(f"{n}.weight").numel() - 4 * model.get_submodule(n).out_features for n in seen)
    assert made.bytes == whole - saved


@EACH
@pytest.mark.filterwarnings("ignore")
def test_nf4_of_bitsandbytes_leaves_the_heads_and_runs_also_where_kernels_want_many_rows(
    make: Any, heads: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = pytest.importorskip("bitsandbytes.nn.modules")
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: True)  # whose layout takes rows in multiples of 32 only
    made = nf4(subject(model := make(), tmp_path))
    assert made.in_floats == heads
    layers = dict(made.model.named_modules())
    assert all(type(layers[name]) is nn.Linear for name in heads)
    assert any(isinstance(layer, modules.Linear4bit) for layer in layers.values())
    shape = (1,) if model.main_input_name == "pixel_values" else (2, 5)
    inputs = random_inputs(model, shape)
    assert torch_run(made.model)(inputs).shape == torch_run(model)(inputs).shape
    assert 0 < made.bytes < sum(4 * p.numel() for p in model.parameters())
    with torch.no_grad():  # the heads' own weights
        for name in heads:
            assert torch.equal(layers[name].weight, model.get_submodule(name).weight)  # type: ignore[arg-type]
