"""A grid owns its codebook: what it answers, and that a number format is a row of `CODEBOOKS` and nothing else."""

from pathlib import Path

import pytest
import torch

from reference import levels, nearest
from toys import batches, bert
from zsaq import MSEOptimal, QuantConfig, Quantizer, gptq, load, quantize_model, reconstruct
from zsaq.deploy.integers import Integers
from zsaq.language.sam_sga import grid_step
from zsaq.quant.codes import dequantize, round_to_grid
from zsaq.quant.grid import CODEBOOKS, Grid
from zsaq.quant.layers import quant_layers
from zsaq.quant.packed import packed_layers
from zsaq.quant.ranges import MinMax

NORMAL = [  # NormalFloat of 4 bits (Dettmers et al. 2023, arXiv 2305.14314, appendix E)
    -1.0, -0.6961928, -0.52507305, -0.39491748, -0.28444138, -0.18477343, -0.09105003, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
]  # fmt: skip


@pytest.fixture
def normal(monkeypatch: pytest.MonkeyPatch) -> Grid:
    monkeypatch.setitem(CODEBOOKS, "normal", tuple(NORMAL))
    return Grid(4, levels="normal")


@pytest.mark.parametrize("bits", range(2, 9))
def test_integers_reach_from_low_to_high(bits: int) -> None:
    signed, shifted = Grid(bits), Grid(bits, symmetric=False)
    assert (signed.low, signed.high, signed.zero) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1, 0)
    assert (shifted.low, shifted.high, shifted.amplitude) == (0, 2**bits - 1, 2**bits - 1)
    assert signed.amplitude == (2 if bits == 2 else signed.high)
    assert list(signed.values) == levels(bits, "integer") and signed.uniform and shifted.uniform


def test_named_levels_are_their_codebooks() -> None:
    half, ternary = Grid(2, levels="half"), Grid(2, levels="ternary")
    assert (half.low, half.high, half.zero, half.amplitude) == (-2, 1, -0.5, 1.5)
    assert (ternary.low, ternary.high, ternary.zero, ternary.amplitude) == (-1, 1, 0, 1)
    assert half.values == (-1.5, -0.5, 0.5, 1.5) and ternary.values == (-1, 0, 1) and half.uniform and ternary.uniform


@pytest.mark.parametrize("grid", [Grid(4), Grid(2), Grid(2, levels="half"), Grid(2, levels="ternary")], ids=str)
def test_every_code_stands_for_its_value(grid: Grid) -> None:
    codes = torch.arange(grid.low, grid.high + 1).float()[None]
    values = dequantize(codes, torch.full((1, 1), 2.0), grid.zero, grid)
    assert values[0].tolist() == [2 * value for value in grid.values]
    assert torch.equal(round_to_grid(values, torch.full((1, 1), 2.0), grid.zero, grid), codes)


def test_a_codebook_that_is_not_even_rounds_to_its_nearest_values(normal: Grid) -> None:
    assert not normal.uniform and (normal.low, normal.high, normal.amplitude) == (0, 15, 1.0)
    assert normal.step == pytest.approx(2 / 15) and Grid(4).step == Grid(2, levels="half").step == 1
    x = torch.randn(5, 32)
    for quantizer in (Quantizer(normal, MinMax()), Quantizer(normal, MSEOptimal(x, normal))):
        scale = quantizer.ranges(x, normal)[0]
        places = (x / scale).tolist()
        expected = torch.tensor([[nearest(place, NORMAL) for place in row] for row in places]) * scale
        assert torch.allclose(quantizer(x), expected, atol=1e-6)
        codes, scale, zero = quantizer.codes(x)
        assert codes.dtype == torch.uint8 and torch.equal(dequantize(codes, scale, zero, normal), quantizer(x))


def test_its_gradient_is_straight_through_and_stops_where_it_saturates(normal: Grid) -> None:
    ranges = MSEOptimal(torch.randn(4, 10), normal, learned=True)
    x, weight = (2 * torch.randn(4, 10)).requires_grad_(), torch.randn(4, 10)
    (Quantizer(normal, ranges)(x) * weight).sum().backward()
    scale = ranges.scale.detach()
    inside = (x.abs() <= scale).detach()
    assert 0 < inside.sum() < inside.numel() and x.grad is not None and ranges.scale.grad is not None
    assert torch.equal(x.grad, torch.where(inside, weight, 0))
    places = x.detach() / scale
    values = torch.tensor([[nearest(v, NORMAL) for v in row] for row in places.tolist()])
    slope = (weight * (values - torch.where(inside, places, 0))).sum(1, keepdim=True) / 10**0.5
    assert torch.allclose(ranges.scale.grad, slope, atol=1e-5)


def test_a_student_of_a_new_format_is_saved_packed_and_comes_back_bit_for_bit(normal: Grid, tmp_path: Path) -> None:
    teacher, batch = bert(), batches(1)[0]
    for config in (QuantConfig(normal), QuantConfig(Grid(4, per=16, levels="normal"), embedding=normal)):
        student = quantize_model(teacher, config)
        student.save_pretrained(tmp_path)
        loaded = load(tmp_path)
        with torch.no_grad():
            assert torch.equal(loaded(**batch).logits, student(**batch).logits)
        layer = next(layer for _, layer in packed_layers(loaded))
        with pytest.raises(ValueError, match="normal levels are not evenly spaced"):
            Integers.of(layer)
        with pytest.raises(ValueError, match=r"learned on even levels, and normal ones are not"):
            reconstruct(student, teacher, [batch], [("bert.encoder", teacher.bert.encoder)], steps=1)


def test_a_new_format_loses_less_than_integers_and_gptq_less_still(normal: Grid) -> None:
    x = torch.randn(64, 256)
    loss = [float((Quantizer(grid, MSEOptimal(x, grid))(x) - x).norm()) for grid in (normal, Grid(4))]
    assert loss[0] < 0.97 * loss[1]
    teacher, batch = bert(), batches(2)
    student, nearer = (quantize_model(teacher, QuantConfig(normal)) for _ in range(2))
    gptq(nearer, batch, [(f"bert.encoder.layer.{i}", teacher.bert.encoder.layer[i]) for i in range(2)])
    with torch.no_grad():
        first, second = ((s(**batch[0]).logits - teacher(**batch[0]).logits).norm() for s in (student, nearer))
    assert second < first
    scales = torch.stack([layer.weight_quantizer.codes(layer.rows())[1].mean() for _, layer in quant_layers(student)])
    assert grid_step(student) == pytest.approx(float(scales.mean()) * 2 / 15)


def test_a_new_format_is_for_weights(normal: Grid) -> None:
    with pytest.raises(ValueError, match=r"input\.levels is 'normal'"):
        QuantConfig(Grid(4), Grid(4, per="token", levels="normal"))
    with pytest.raises(ValueError, match="symmetric 4-bit grids"):
        Grid(3, levels="normal")
    with pytest.raises(ValueError, match="symmetric 4-bit grids"):
        Grid(4, symmetric=False, levels="normal")
