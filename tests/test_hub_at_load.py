"""`from_pretrained(..., quantization_config=ZsaqConfig(text))`: a float model is rounded while it is loaded."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from toys import bert, gpt2, llama
from vision_toys import images, resnet
from zsaq import Grid, QuantConfig, coverage, load, quantize_model, save
from zsaq.quant.adapter import ZsaqConfig, ZsaqQuantizer
from zsaq.quant.packed import packed_layers
from zsaq.quant.plan import plan_of

IDS = torch.arange(36).reshape(3, 12) * 5 % 90
MODELS: dict[str, tuple[Any, Any]] = {
    "llama": (llama, AutoModelForCausalLM),
    "gpt2": (gpt2, AutoModelForCausalLM),
    "bert": (bert, AutoModelForSequenceClassification),
}


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("text", ["w4a16g16", "w2a8", "w8a8e16"])
@pytest.mark.parametrize("family", MODELS)
def test_it_is_the_student_of_the_float_model_and_saves_as_one(
    family: str, text: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    make, auto = MODELS[family]
    make().to(dtype).save_pretrained(tmp_path / "teacher")
    config = ZsaqConfig(text)
    model = auto.from_pretrained(tmp_path / "teacher", quantization_config=config, dtype="auto")
    student = quantize_model(auto.from_pretrained(tmp_path / "teacher", dtype="auto").eval(), text)
    # Latent weights of GPT-2 lie transposed, and in float16 sums round as they are ordered.
    noise = 1e-2 if (family, dtype) == ("gpt2", torch.float16) else 0.0
    assert model.dtype == dtype and torch.allclose(logits(model), logits(student), rtol=0, atol=noise)
    assert coverage(model) == coverage(student) and plan_of(model) == plan_of(student)
    assert not any(name.endswith("proj.weight") for name, _ in model.named_parameters()) and any(packed_layers(model))
    model.save_pretrained(tmp_path / "model")
    student.save_pretrained(tmp_path / "student")
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "model" / file).read_bytes() == (tmp_path / "student" / file).read_bytes()
    assert torch.equal(logits(load(tmp_path / "model")), logits(model))
    assert torch.equal(logits(load(save(model, tmp_path / "again"))), logits(model))
    other = auto.from_pretrained(tmp_path / "teacher", quantization_config=config)  # a configuration is used again
    assert config.plan is None and coverage(other) == coverage(model)


def test_a_table_and_its_head_read_the_same_codes(tmp_path: Path) -> None:
    teacher = gpt2()
    teacher.save_pretrained(tmp_path / "teacher")
    config = QuantConfig.parse("w4a8")
    config = QuantConfig(config.weight, config.input, config.embedding, rules=(("transformer.wte", config),))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "teacher", quantization_config=ZsaqConfig(config))
    model.tie_weights()  # of parameters: none is left to tie
    assert plan_of(model).tied == {"lm_head": "transformer.wte"}
    assert torch.equal(logits(model), logits(quantize_model(teacher, config)))
    model.save_pretrained(tmp_path / "model")
    assert torch.equal(logits(load(tmp_path / "model")), logits(model))


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}])
def test_one_device_is_no_matter(device_map: Any, tmp_path: Path) -> None:
    teacher = llama()
    teacher.save_pretrained(tmp_path / "teacher")
    options: dict[str, Any] = {"quantization_config": ZsaqConfig("w4a8"), "device_map": device_map}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "teacher", **options)
    assert isinstance(model, PreTrainedModel)
    assert torch.equal(logits(model.cpu()), logits(quantize_model(teacher, "w4a8")))


def test_a_model_that_is_spread_is_refused(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "teacher")
    spread = {"model": "cpu", "lm_head": "disk"}
    with pytest.raises(ValueError, match=r"device_map spreads the float model over \['cpu', 'disk'\]: round it on one"):
        AutoModelForCausalLM.from_pretrained(
            tmp_path / "teacher", quantization_config=ZsaqConfig("w4a8"), device_map=spread,
            offload_folder=tmp_path / "offload",
        )  # fmt: skip
    model: Any = llama()
    model.hf_device_map = {"model": 0, "lm_head": 1}
    with pytest.raises(ValueError, match=r"\['0', '1'\]"):
        ZsaqQuantizer(ZsaqConfig("w4a8"), pre_quantized=False).round(model)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("w4", "'w4' is no quantization; the form is"),
        (7, "the configuration is 7; give a text such as"),
        (None, "the configuration is None"),
        (QuantConfig(Grid(4), Grid(8, per="tensor")), r"need calibration .* zsaq\.quantize"),
        (QuantConfig(Grid(4), activation=Grid(8, per="tensor")), r"need calibration .* zsaq\.quantize"),
        (QuantConfig(rules=(("x", QuantConfig(Grid(4), Grid(8, per="tensor"))),)), "need calibration"),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_is_read(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ZsaqConfig(given)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (QuantConfig.parse("w4a16g7"), r"q_proj: the group size 7 does not divide"),
        (QuantConfig(Grid(4), Grid(8, per=7)), r"q_proj: the group size 7 does not divide"),
        (QuantConfig(rules=(("nothing.*", None),)), "matches no module"),
        (QuantConfig(None), "nothing would be quantized"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_by_name_before_a_weight_is_read(
    config: QuantConfig, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llama().save_pretrained(tmp_path)
    monkeypatch.setattr(PreTrainedModel, "_load_pretrained_model", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(ValueError, match=message):
        AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=ZsaqConfig(config))


def test_a_model_that_is_quantized_stays_what_it_is_and_says_so(tmp_path: Path) -> None:
    student = quantize_model(bert(), "w2a8")
    student.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="The `quantization_config` from the model will be used"):
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path, quantization_config=ZsaqConfig("w8a8"))
    assert coverage(model) == coverage(student) and torch.equal(logits(model), logits(student))


def test_an_image_classifier_is_rounded_too(tmp_path: Path) -> None:
    teacher, pixels = resnet(), images(4, 32)
    teacher.save_pretrained(tmp_path / "teacher")
    options: dict[str, Any] = {"quantization_config": ZsaqConfig("w4a16")}
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "teacher", **options)
    with torch.no_grad():
        answer = model(pixels).logits
        assert torch.equal(answer, quantize_model(teacher, "w4a16")(pixels).logits)
        assert torch.equal(answer, load(save(model, tmp_path / "model"))(pixels).logits)
    with pytest.raises(ValueError, match=r"resnet\.embedder\.\S+: this convolution's input per token"):
        AutoModelForImageClassification.from_pretrained(tmp_path / "teacher", quantization_config=ZsaqConfig("w4a8"))
