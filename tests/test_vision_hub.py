"""Students of vision on disk and back, bit for bit; static ranges that are missing or senseless are refused by name."""

import copy
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForImageClassification

from vision_toys import convnext, deit, images, mobilenet, regnet, resnet, swin, vit
from zsaq import Grid, QuantConfig, calibrate, coverage, load, quantize_model
from zsaq.quant.layers import quant_activations, quant_layers
from zsaq.quant.packed import packed_layers
from zsaq.quant.packed_model import pack_plan, packed_weight
from zsaq.quant.plan import plan_of
from zsaq.quant.ranges import EMAMinMax, static_ranges
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.presets import brecq, psaq, uniform

FAMILIES: dict[str, tuple[Callable[[], Any], int]] = {
    "resnet": (resnet, 32),
    "bottleneck": (lambda: resnet(layer_type="bottleneck"), 32),
    "regnet": (regnet, 32),
    "mobilenet": (mobilenet, 32),
    "convnext": (convnext, 32),
    "vit": (vit, 16),
    "deit": (deit, 16),
    "swin": (swin, 32),
}
CNNS = ("resnet", "bottleneck", "regnet", "mobilenet")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting threads takes longer than reading these small files."""
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")


def student_of(family: str, preset: Callable[..., QuantConfig] = uniform, text: str = "w4a4") -> Any:
    """A calibrated student whose weights have moved since, as training moves them."""
    make, size = FAMILIES[family]
    teacher = make()
    config = brecq(text, teacher, ImageSpec(4, size)) if preset is brecq else preset(text, teacher)
    student = calibrate(quantize_model(teacher, config), [{"pixel_values": images(4, size, seed=s)} for s in range(3)])
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    return student


@torch.no_grad()
def bits(model: nn.Module, size: int) -> Tensor:
    return model(pixel_values=images(3, size, seed=9)).logits.view(torch.int32)


CASES = [(f, uniform, "w4a4") for f in CNNS] + [(f, brecq, "w2a4") for f in CNNS] + [("mobilenet", uniform, "w8a8")]
CASES += [(f, psaq, "w4a8") for f in ("vit", "deit", "swin", "convnext")] + [("swin", brecq, "w3a3")]


@pytest.mark.parametrize(("family", "preset", "text"), CASES)
def test_a_student_comes_back_bit_for_bit(family: str, preset, text: str, tmp_path: Path) -> None:
    student, size = student_of(family, preset, text), FAMILIES[family][1]
    student.save_pretrained(tmp_path / "first")
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "first")
    assert torch.equal(bits(loaded, size), bits(student, size))
    assert torch.equal(bits(load(tmp_path / "first"), size), bits(student, size))
    assert coverage(loaded) == coverage(student) and plan_of(loaded) == plan_of(student)
    assert [n for n, _ in packed_layers(loaded)] == [n for n, _ in quant_layers(student)]
    for (name, relu), (other, back) in zip(quant_activations(student), quant_activations(loaded), strict=True):
        assert name == other and type(relu) is type(back)
        for key, value in relu.output_quantizer.ranges.named_buffers():
            assert torch.equal(value, back.output_quantizer.ranges.get_buffer(key))
    again = copy.deepcopy(loaded)
    again.save_pretrained(tmp_path / "second")
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_weights_are_stored_in_their_bits(tmp_path: Path) -> None:
    student = student_of("mobilenet", uniform, "w4a4")
    student.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for name, layer in quant_layers(student):
        rows = layer.weight.flatten(1)
        assert tensors[f"{name}.codes"].shape == (rows.shape[0], math.ceil(rows.shape[1] / 2))
        assert tensors[f"{name}.weight"].nbytes == 1
    assert {n for n in tensors if "output_quantizer" in n} == {
        f"{name}.output_quantizer.ranges.{key}" for name, _ in quant_activations(student) for key in ("scale", "zero")
    }


CONVS = {
    "grouped": nn.Conv2d(4, 6, 3, groups=2, padding=1),
    "depthwise": nn.Conv2d(4, 8, 3, groups=4, bias=False, stride=2),
    "pointwise": nn.Conv2d(4, 5, 1),
    "dilated": nn.Conv2d(4, 3, 3, dilation=2, padding="same", padding_mode="reflect"),
    "oblong": nn.Conv2d(4, 3, (1, 5), padding=(0, 2)),
}


@pytest.mark.parametrize("name", CONVS)
@pytest.mark.parametrize("grid", [Grid(2, symmetric=False), Grid(3), Grid(5, per="tensor")], ids=str)
def test_convolutions_pack_bit_for_bit(name: str, grid: Grid) -> None:
    net = nn.Sequential(nn.ReLU6(), CONVS[name])
    config = QuantConfig(
        grid, Grid(8, symmetric=False, per="tensor"), activation=Grid(4, symmetric=False, per="tensor")
    )
    student, packed, x = quantize_model(net, config), copy.deepcopy(net), torch.randn(2, 4, 9, 9)
    pack_plan(packed, plan_of(student))
    for model in (student, packed):
        observe(model, x)
    with torch.no_grad():
        for path, layer in quant_layers(student):
            for key, value in packed_weight(layer).items():
                packed.get_buffer(f"{path}.{key}").copy_(value)
    assert torch.equal(packed(x), student(x)) and coverage(packed) == coverage(student)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(packed(x), student(x))


def observe(model: nn.Module, x: Tensor) -> None:
    for ranges in static_ranges(model):
        ranges.observer.observe(nn.functional.relu6(x).reshape(1, -1))
        ranges.freeze()


RELU, CONV = "resnet.embedder.embedder.activation", "resnet.encoder.stages.1.layers.0.shortcut.convolution"
STATIC = f"{RELU}.output_quantizer.ranges", f"{CONV}.input_quantizer.ranges"


def both() -> Any:
    """A student with static ranges of either kind."""
    teacher = resnet()
    config = uniform("w4a4", teacher)
    return quantize_model(teacher, replace(config, input=Grid(8, symmetric=False, per="tensor")))


@pytest.mark.parametrize("where", STATIC)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({"scale": 0}, r"the static range has seen nothing: run zsaq\.calibrate"),
        ({"scale": math.nan}, "must be finite"),
        ({"scale": math.inf}, "must be finite"),
        ({"scale": -1}, "not empty"),
        ({"scale": 1e-8}, r"not empty, .* run zsaq\.calibrate\(student, batches\) on other batches"),
        ({"zero": math.nan}, "a zero from 0 to"),
        ({"zero": -1}, "a zero from 0 to"),
        ({"zero": 256}, "a zero from 0 to"),
        ({"zero": 2.5}, "a zero from 0 to"),
    ],
)
def test_senseless_ranges_are_neither_saved_nor_loaded(
    where: str, spoil: dict[str, float], message: str, tmp_path: Path
) -> None:
    student = calibrate(both(), [{"pixel_values": images(4, 32)}])
    student.save_pretrained(tmp_path / "good")
    with torch.no_grad():
        for key, value in spoil.items():
            student.get_buffer(f"{where}.{key}").fill_(value)
    name = where.rpartition(".")[0].rpartition(".")[0]
    with pytest.raises(ValueError, match=rf"{name}: .*{message}"):
        student.save_pretrained(tmp_path / "bad")
    tensors = load_file(tmp_path / "good" / "model.safetensors")
    for key, value in spoil.items():
        tensors[f"{where}.{key}"].fill_(value)
    save_file(tensors, tmp_path / "good" / "model.safetensors", metadata={"format": "pt"})
    for read in (load, AutoModelForImageClassification.from_pretrained):
        with pytest.raises(ValueError, match=rf"{name}: .*{message}.*save the student again"):
            read(tmp_path / "good")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    calibrate(both(), [{"pixel_values": images(4, 32)}]).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.pop(f"{STATIC[0]}.scale"), rf"{RELU}: the tensor .*ranges\.scale is missing"),
        (lambda t: t.pop(f"{STATIC[1]}.zero"), rf"{CONV}: the tensor .*ranges\.zero is missing"),
        (lambda t: t.update({f"{STATIC[0]}.scale": torch.ones(2, 1)}), rf"{RELU}: .*scale is .*\(2, 1\).*asks for"),
        (lambda t: t.update({f"{STATIC[0]}.zero": torch.ones(1, 1).half()}), rf"{RELU}: .*zero is \('F16'"),
        (lambda t: t.update({f"{RELU}.stranger": torch.ones(1)}), rf"{RELU}: its plan knows no tensors"),
        (lambda t: t.pop("resnet.embedder.embedder.normalization.running_var"), r"running_var.*drawn at random"),
    ],
)
def test_damaged_tensors_are_refused(
    saved: Path, tmp_path: Path, spoil: Callable[[dict[str, Tensor]], Any], message: str
) -> None:
    tensors = load_file(saved / "model.safetensors")
    spoil(tensors)
    shutil.copy(saved / "config.json", tmp_path)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (f'"{RELU}"', '"resnet.pooler"', r"resnet\.pooler: .* has AdaptiveAvgPool2d there"),
        ('"activation": {', '"activation": null, "stranger": {', "unknown keys"),
        ('"hidden_act": "relu"', '"hidden_act": "gelu"', r"activation: .* has GELUActivation there"),
    ],
)
def test_hostile_configs_are_refused(saved: Path, tmp_path: Path, old: str, new: str, message: str) -> None:
    text = (saved / "config.json").read_text()
    assert old in text
    (tmp_path / "config.json").write_text(text.replace(old, new))
    shutil.copy(saved / "model.safetensors", tmp_path)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_an_activation_without_a_grid_is_refused(saved: Path) -> None:
    plan = plan_of(load(saved))
    chosen = {**plan.chosen, RELU: replace(plan.chosen[RELU], activation=None)}
    with pytest.raises(ValueError, match=rf"{RELU}: the configuration has no grid for activations"):
        pack_plan(resnet(), replace(plan, chosen=chosen))


def test_an_uncalibrated_student_is_not_saved(tmp_path: Path) -> None:
    for preset in (uniform, brecq):
        student = quantize_model(teacher := resnet(), preset("w4a4", teacher))
        with pytest.raises(ValueError, match=r"resnet\.\S+: the static range has seen nothing: run zsaq\.calibrate"):
            student.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.95])
def test_a_range_is_saved_as_it_is_computed_with_whatever_found_it(momentum: float, tmp_path: Path) -> None:
    student = both()
    for ranges in static_ranges(student):
        ranges.observer = EMAMinMax(momentum)
    calibrate(student, [{"pixel_values": images(4, 32, seed=seed)} for seed in range(3)])
    student.save_pretrained(tmp_path)
    assert torch.equal(bits(load(tmp_path), 32), bits(student, 32))


def test_a_loaded_model_refuses_a_convolution_s_input_per_row_of_pixels(saved: Path, tmp_path: Path) -> None:
    text = (saved / "config.json").read_text()
    config = json.loads(text)
    config["quantization_config"]["config"]["input"]["per"] = "token"
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(saved / "model.safetensors", tmp_path)
    with pytest.raises(ValueError, match=r"resnet\.\S+: this convolution's input per token"):
        load(tmp_path)
