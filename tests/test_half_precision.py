"""Scales are float32 whatever is rounded: 16 bits hold too little of them, and of small ones float16 holds nothing."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from students import IDS, TEACHERS
from zsaq import Grid, QuantConfig, load, parameter_groups, quantize_model
from zsaq.deploy.comparison import round_plainly
from zsaq.quant.codes import groups
from zsaq.quant.layers import quant_layers
from zsaq.quant.packed_model import pack_plan, packed_weight
from zsaq.quant.plan import plan_of
from zsaq.quant.quantizer import Quantizer
from zsaq.quant.ranges import MinMax, MSEOptimal, Static

HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
SIZES = pytest.mark.parametrize("size", [3e4, 1.0, 8e-3, 1e-3, 1e-5])
GRIDS = [Grid(8, per="token"), Grid(8, symmetric=False, per="token"), Grid(8, per=8), Grid(4, per="tensor")]


def numbers(size: float, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(1)).clamp(-2, 2) * size).to(dtype)


@HALVES
@SIZES
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("kind", ["dynamic", "static", "searched", "learned"])
@torch.no_grad()
def test_what_is_rounded_in_16_bits_is_what_float32_would_make_of_it(kind: str, grid: Grid, size: float, dtype) -> None:
    grid = replace(grid, per="tensor") if kind == "static" else grid
    x = numbers(size, dtype, 4, 32)
    full = x.float()
    match kind:
        case "dynamic":
            ranges = MinMax()
        case "static":
            ranges = Static(grid)
            ranges.hold(full.amin().view(1, 1), full.amax().view(1, 1))
        case _:
            ranges = MSEOptimal(groups(full, grid), grid, kind == "learned")
    quantizer = Quantizer(grid, ranges)
    got = quantizer(x)
    assert got.dtype == dtype and torch.equal(got, quantizer(full).to(dtype))
    assert all(torch.equal(a, b) for a, b in zip(quantizer.codes(x), quantizer.codes(full), strict=True))
    if kind in ("dynamic", "static"):
        codes, values, _ = round_plainly(x, quantizer)
        assert torch.equal(codes, quantizer.codes(x)[0].float())
        assert float((values - full).abs().max() / full.abs().max()) <= 1.01 / 2 ** (grid.bits - 1)


@HALVES
def test_scales_stay_float32_when_a_student_is_cast(dtype: torch.dtype) -> None:
    config = QuantConfig(Grid(4), Grid(8, per="tensor"), ranges="learned")
    student = quantize_model(nn.Sequential(nn.Linear(8, 4)), config)
    layer: Any = student[0]
    layer.input_quantizer.ranges.hold(torch.full((1, 1), -3e-4), torch.full((1, 1), 1e-4))
    before = {name: each.clone() for name, each in student.state_dict().items() if "ranges" in name}
    student.to(dtype)
    assert layer.weight.dtype == dtype and len(before) == 4
    assert all(torch.equal(student.state_dict()[name], each) for name, each in before.items())
    assert isinstance(layer.weight_quantizer.ranges.scale, nn.Parameter)


@HALVES
@pytest.mark.parametrize("ranges", ["minmax", "searched"])
@pytest.mark.parametrize("size", [1.0, 1e-4, 1e-6])
def test_weights_of_16_bits_get_scales_of_float32_in_latent_and_packed_layers(ranges, size: float, dtype) -> None:
    teacher = nn.Sequential(nn.Linear(16, 8), Conv1D(6, 8))
    with torch.no_grad():
        for p in teacher.parameters():
            p.copy_(numbers(size, torch.float32, *p.shape))
    teacher = teacher.to(dtype)
    config = QuantConfig(Grid(4), Grid(8, per="token"), ranges=ranges)
    student, wide = quantize_model(teacher, config), quantize_model(copy.deepcopy(teacher).float(), config)
    packed = copy.deepcopy(teacher)
    pack_plan(packed, plan_of(student))
    for (name, layer), (_, other) in zip(quant_layers(student), quant_layers(wide), strict=True):
        assert torch.equal(layer.dequantized(), other.dequantized().to(dtype))
        for key, value in packed_weight(layer).items():
            assert torch.equal(value, packed_weight(other)[key])
            packed.get_submodule(name).register_buffer(key, value)
    for x in (numbers(1e-5, dtype, 3, 16), numbers(1.0, dtype, 3, 16)):
        with torch.no_grad():
            assert torch.equal(student(x), packed(x)) and student(x).any()


def test_a_learned_scale_s_rate_is_finite_for_weights_whose_squares_float16_does_not_hold() -> None:
    teacher: Any = nn.Sequential(nn.Linear(16, 8, bias=False))
    nn.init.normal_(teacher[0].weight, std=1e-5)
    config = QuantConfig(Grid(4), ranges="learned")
    rates = [parameter_groups(quantize_model(model, config), 1e-3)[1]["lr"] for model in (teacher, teacher.half())]
    assert 0 < rates[1] < 1e-3 and rates[1] == pytest.approx(rates[0], rel=1e-2)


@HALVES
def test_a_saved_student_in_16_bits_answers_alike(dtype: torch.dtype, tmp_path: Path) -> None:
    teacher: Any = TEACHERS["bert"]().eval()
    student: Any = quantize_model(teacher.to(dtype), "w4a8")
    student.save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(load(tmp_path)(IDS).logits, student(IDS).logits)
