"""Students on disk and back, bit for bit."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertForMaskedLM,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

from students import BERT, CONFIGS, IDS, TABLES, TEACHERS, bits, one_thread, student_of
from zsaq.io.loading import load
from zsaq.quant.adapter import ZsaqConfig
from zsaq.quant.config import Grid, QuantConfig
from zsaq.quant.layers import quant_layers
from zsaq.quant.model import coverage, quantize_model
from zsaq.quant.packed import PackedLinear, packed_layers
from zsaq.quant.packed_model import pack_plan, packed_weight
from zsaq.quant.plan import Plan, plan_of

__all__ = ["one_thread"]


AUTO: dict[str, Any] = {"bert": AutoModelForSequenceClassification}


ALL = [(family, name) for family in ("bert", "gpt2") for name in CONFIGS]
SOME = [(family, name) for family in ("opt", "llama") for name in ("w2a8", "w4a8g16", "asymmetric")]


@pytest.mark.parametrize(("family", "name"), ALL + SOME)
def test_a_student_comes_back_bit_for_bit(family: str, name: str, tmp_path: Path) -> None:
    student = student_of(family, CONFIGS[name])
    student.save_pretrained(tmp_path / "first")
    loaded = AUTO.get(family, AutoModelForCausalLM).from_pretrained(tmp_path / "first")
    assert torch.equal(bits(loaded), bits(student))
    assert torch.equal(bits(load(tmp_path / "first")), bits(student))
    assert coverage(loaded) == coverage(student)
    assert plan_of(loaded) == plan_of(student)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert torch.equal(loaded(IDS).logits, student(IDS).logits)
    loaded.save_pretrained(tmp_path / "second")
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


@pytest.mark.parametrize("family", TABLES)
def test_both_ends_of_a_tied_table_read_the_same_codes(family: str, tmp_path: Path) -> None:
    table = TABLES[family]
    config = QuantConfig(Grid(4), Grid(8, per="token"), None, rules=((table, QuantConfig.parse("w3a8")),))
    student = student_of(family, config)
    student.save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors")
    assert f"{table}.codes" in names and not any(name.startswith("lm_head") for name in names)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(bits(loaded), bits(student)) and coverage(loaded) == coverage(student)
    assert loaded.lm_head.dequantized(torch.float32) is loaded.get_submodule(table).dequantized(torch.float32)
    loaded.tie_weights()  # transformers calls it on many occasions; there is nothing left for it to tie
    again = copy.deepcopy(loaded)
    assert torch.equal(bits(again), bits(student))
    assert again.lm_head.table is again.get_submodule(table)
    again.save_pretrained(tmp_path / "again")
    assert torch.equal(bits(load(tmp_path / "again")), bits(student))


def test_a_tied_head_in_floats_stays_tied(tmp_path: Path) -> None:
    student_of("gpt2", CONFIGS["w2a8"]).save_pretrained(tmp_path)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.transformer.wte.weight


def test_a_masked_lm_with_a_quantized_table_comes_back(tmp_path: Path) -> None:
    rules = (("bert.embeddings.word_embeddings", QuantConfig.parse("w4a8")),)
    student = quantize_model(BertForMaskedLM(BERT), QuantConfig(Grid(4), rules=rules))
    assert isinstance(student, BertForMaskedLM)
    student.save_pretrained(tmp_path)
    assert torch.equal(bits(AutoModelForMaskedLM.from_pretrained(tmp_path)), bits(student))


def test_an_image_classifier_comes_back(tmp_path: Path) -> None:
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, image_size=8, patch_size=4
    )
    rules = (("*.projection", QuantConfig(Grid(8))),)
    student = quantize_model(ViTForImageClassification(config), replace(QuantConfig.parse("w4a8"), rules=rules))
    assert isinstance(student, ViTForImageClassification)
    student.save_pretrained(tmp_path)
    pixels = torch.randn(2, 3, 8, 8)
    assert torch.equal(bits(AutoModelForImageClassification.from_pretrained(tmp_path), pixels), bits(student, pixels))


def test_saving_reads_the_weights_of_the_moment_and_leaves_the_student_alone(tmp_path: Path) -> None:
    student = student_of("bert", CONFIGS["w2a8"])
    student.save_pretrained(tmp_path / "before")
    with torch.no_grad():
        next(iter(quant_layers(student)))[1].weight.neg_()
        for _, layer in quant_layers(student):
            layer.weight.mul_(-1)
    state = {key: value.clone() for key, value in student.state_dict().items()}
    student.save_pretrained(tmp_path / "after")
    assert all(torch.equal(value, state[key]) for key, value in student.state_dict().items())
    assert torch.equal(bits(load(tmp_path / "after")), bits(student))
    assert not torch.equal(bits(load(tmp_path / "before")), bits(student))


def test_the_float_teacher_is_untouched(tmp_path: Path) -> None:
    teacher = TEACHERS["bert"]().eval()
    quantize_model(teacher, CONFIGS["w2a8"])
    assert "quantization_config" not in teacher.config.to_dict()
    teacher.save_pretrained(tmp_path)
    assert torch.equal(bits(AutoModelForSequenceClassification.from_pretrained(tmp_path)), bits(teacher))
    with pytest.raises(ValueError, match="float model"):
        load(tmp_path)


def test_two_bit_weights_take_two_bits(tmp_path: Path) -> None:
    student = student_of("llama", QuantConfig(weight=Grid(2, levels="ternary")))
    student.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    weights = [layer.weight for _, layer in quant_layers(student)]
    codes = sum(value.nbytes for name, value in tensors.items() if name.endswith(".codes"))
    assert codes == sum(weight.numel() for weight in weights) / 4
    floats = sum(p.nbytes for p in student.parameters()) - sum(weight.nbytes for weight in weights)
    scales = sum(len(weight) * 4 for weight in weights)
    decoys = 1 + len(weights)
    assert sum(value.nbytes for value in tensors.values()) == codes + scales + floats + decoys


def test_casting_keeps_the_scales(tmp_path: Path) -> None:
    student = student_of("gpt2", CONFIGS["w8a8"])
    student.save_pretrained(tmp_path)
    exact = bits(student).view(torch.float32)
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    late: Any = load(tmp_path)
    bits(late)
    for model in (half, late.to(torch.bfloat16)):
        assert all(layer.scale.dtype == torch.float32 for _, layer in packed_layers(model))
        assert all(layer.weight.dtype == torch.bfloat16 for _, layer in packed_layers(model))
        with torch.no_grad():
            assert torch.allclose(model(IDS).logits.float(), exact, atol=0.1)


def test_a_loaded_model_has_no_latent_weights_but_passes_gradients(tmp_path: Path) -> None:
    student_of("bert", CONFIGS["w2a8"]).save_pretrained(tmp_path)
    loaded = load(tmp_path)
    layer = loaded.get_submodule("bert.pooler.dense")
    assert isinstance(layer, PackedLinear) and isinstance(layer, nn.Linear) and layer.weight.shape == (32, 32)
    assert "weight" not in dict(layer.named_parameters()) and "codes" in layer.state_dict()
    with torch.inference_mode():
        first = loaded(IDS).logits.clone()
    inputs = torch.randn(1, 4, 32, requires_grad=True)
    loaded(inputs_embeds=inputs).logits.sum().backward()
    assert inputs.grad is not None and inputs.grad.abs().sum() > 0
    state = {key: value.clone() for key, value in loaded.state_dict().items()}
    state["bert.pooler.dense.scale"] *= 2
    loaded.load_state_dict(state)  # what was unpacked before must not live on
    assert not torch.equal(bits(loaded).view(torch.float32), first)
    with pytest.raises(ValueError, match="quantized already"):
        quantize_model(loaded, CONFIGS["w2a8"])


@pytest.mark.parametrize("grid", [Grid(2, levels="half"), Grid(4, per=6), Grid(3, symmetric=False)])
def test_convolutions_and_plain_modules_pack_too(grid: Grid) -> None:
    teacher = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2, padding=1), nn.ReLU(), nn.Conv2d(6, 2, 1, bias=False))
    student = quantize_model(teacher, QuantConfig(grid))
    packed = copy.deepcopy(teacher)
    pack_plan(packed, plan_of(student))
    with torch.no_grad():
        for name, layer in quant_layers(student):
            for key, value in packed_weight(layer).items():
                packed.get_buffer(f"{name}.{key}").copy_(value)
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(packed(x), student(x))
    assert packed[0].weight.shape == teacher[0].weight.shape
    assert coverage(packed) == coverage(student)


def test_an_uncalibrated_student_is_not_saved(tmp_path: Path) -> None:
    student = quantize_model(TEACHERS["bert"](), CONFIGS["static"])
    assert isinstance(student, PreTrainedModel)
    with pytest.raises(ValueError, match=r"bert\.encoder\S+: the static range has seen nothing: run zsaq\.calibrate"):
        student.save_pretrained(tmp_path)


def test_a_plan_goes_through_json_and_back() -> None:
    rules = (("transformer.wte", QuantConfig.parse("w3a8")), ("*.c_fc", None))
    plan = plan_of(quantize_model(TEACHERS["gpt2"](), QuantConfig(Grid(4), rules=rules)))
    assert plan.tied == {"lm_head": "transformer.wte"}
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert ZsaqConfig.from_dict(ZsaqConfig(plan).to_dict()).plan == plan
