"""Parity of students of every family and width, with exports and without."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

from exported import LOADED, tiny_bert
from zsaq.deploy.parity import verify
from zsaq.deploy.runtimes import export
from zsaq.io.checksums import MANIFEST
from zsaq.io.loading import load
from zsaq.io.saving import save
from zsaq.quant.config import Grid, QuantConfig
from zsaq.quant.model import quantize_model
from zsaq.quant.packed import packed_layers
from zsaq.train.trainer import calibrate

SMALL: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128
}  # fmt: skip
OTHERS = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=64, n_layer=2, n_head=2, n_positions=24)),
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(vocab_size=96, num_key_value_heads=1, max_position_embeddings=24, **SMALL)
    ),
    "roberta": lambda: RobertaForSequenceClassification(
        RobertaConfig(vocab_size=96, max_position_embeddings=40, **SMALL)
    ),
    "vit": lambda: ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **SMALL)),
    "bert": tiny_bert,
}
TIED = QuantConfig(Grid(4), Grid(8, per="token"), rules=(("transformer.wte", QuantConfig.parse("w4a8e4")),))
BLOCKS = QuantConfig(Grid(2, levels="half", per=32), Grid(8, per=32), embedding=Grid(4))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "config", "twin"),
    [
        ("bert", QuantConfig.parse("w4a8e8g32"), True), ("bert", QuantConfig.parse("w4a16"), True),
        ("bert", QuantConfig.parse("w3a8"), True), ("bert", BLOCKS, False),
        ("gpt2", QuantConfig.parse("w4a8"), False), ("gpt2", TIED, False),
        ("llama", QuantConfig.parse("w2a8"), True), ("roberta", QuantConfig.parse("w8a8"), True),
    ],
    ids=str,
)  # fmt: skip
def test_other_students_agree(name: str, config: QuantConfig, twin: bool, tmp_path: Path) -> None:
    student = quantize_model(OTHERS[name]().eval(), config)
    assert isinstance(student, PreTrainedModel)
    save(student, tmp_path / "student")
    for to in ("onnx", "compressed-tensors") if twin else ("onnx",):
        export(tmp_path / "student", to)  # type: ignore[arg-type]
    report = verify(tmp_path / "student")
    assert report["agrees"] and ("compressed-tensors" in report) == twin
    assert (tmp_path / "student" / MANIFEST).is_file() and load(tmp_path / "student")


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_a_student_without_exports_agrees_with_its_rule(name: str, tmp_path: Path) -> None:
    config = QuantConfig(
        Grid(4), Grid(8, False, "token"), rules=(("*.projection", QuantConfig(Grid(4))),)[: name == "vit"]
    )
    student = quantize_model(OTHERS[name]().eval().bfloat16(), config)
    assert isinstance(student, PreTrainedModel)
    student.save_pretrained(tmp_path)
    report, loaded = verify(tmp_path), load(tmp_path)
    assert report["agrees"] and set(report[LOADED]["layers"]) == {name for name, _ in packed_layers(loaded)}
    assert loaded.dtype == torch.bfloat16 and not (tmp_path / MANIFEST).exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["w8a8s", "w2a8s", "asymmetric"])
def test_static_scales_of_half_precision_are_rounded_in_compressed_tensors_told_and_verified(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    config = QuantConfig(Grid(4), Grid(8, False, "tensor")) if name == "asymmetric" else QuantConfig.parse(name)
    student: Any = quantize_model(OTHERS["llama"]().eval().to(dtype), config)
    save(calibrate(student, [{"input_ids": torch.arange(36).view(2, 18)}]), tmp_path)
    facts = export(tmp_path, "compressed-tensors")
    assert sum("scales are rounded to" in change for change in facts["changed"]) == 1
    tensors = load_file(tmp_path / "compressed-tensors" / "model.safetensors")
    layers: dict[str, Any] = {key: layer for key, layer in packed_layers(load(tmp_path)) if layer.input_quantizer}
    for key, layer in layers.items():
        scale = layer.input_quantizer.ranges.scale
        assert torch.equal(tensors[f"{key}.input_scale"], scale.view(1).to(dtype))
    report = verify(tmp_path, write=False)
    assert report["agrees"], report["compressed-tensors"]


def test_a_static_scale_that_the_dtype_does_not_hold_is_refused_by_name(tmp_path: Path) -> None:
    student: Any = quantize_model(OTHERS["llama"]().eval().half(), QuantConfig.parse("w8a8s"))
    calibrate(student, [{"input_ids": torch.arange(36).view(2, 18)}])
    ranges: Any = student.get_submodule("model.layers.1.mlp.down_proj").input_quantizer.ranges
    ranges.scale.fill_(2e-8)
    save(student, tmp_path)
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.down_proj: its inputs have the scale 2e-08.*float16.*onnx"):
        export(tmp_path, "compressed-tensors")
    assert not (tmp_path / "compressed-tensors").exists()
