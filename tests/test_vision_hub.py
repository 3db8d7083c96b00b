"""Students of vision on disk and back, bit for bit."""

import copy
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForImageClassification

from students import one_thread
from vision_students import CNNS, FAMILIES, bits, both, student_of
from vision_toys import images
from zsaq import Grid, QuantConfig, calibrate, coverage, load, quantize_model
from zsaq.quant.layers import quant_activations, quant_layers
from zsaq.quant.packed import packed_layers
from zsaq.quant.packed_model import pack_plan, packed_weight
from zsaq.quant.plan import plan_of
from zsaq.quant.ranges import EMAMinMax, static_ranges
from zsaq.vision.presets import brecq, psaq, uniform

__all__ = ["one_thread"]


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


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.95])
def test_a_range_is_saved_as_it_is_computed_with_whatever_found_it(momentum: float, tmp_path: Path) -> None:
    student = both()
    for ranges in static_ranges(student):
        ranges.observer = EMAMinMax(momentum)
    calibrate(student, [{"pixel_values": images(4, 32, seed=seed)} for seed in range(3)])
    student.save_pretrained(tmp_path)
    assert torch.equal(bits(load(tmp_path), 32), bits(student, 32))
