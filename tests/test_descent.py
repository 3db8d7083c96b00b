"""Coordinate descent after compensated rounding, and moments about the mean."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from test_one_pass import KINDS, convolution, miss
from zsaq import Grid, QuantConfig, one_pass, quantize_model
from zsaq.quant.layers import quant_layers
from zsaq.train.compensation import Factor, centred, gptq_columns, moment, sums, unfolded
from zsaq.train.descent import COLUMNS, descend
from zsaq.vision.models import classifier


def problem(groups: int, out: int, d: int, bits: int, seed: int) -> tuple[Any, ...]:
    """Rows [groups * out, d], a rounding of them, the moment of related inputs, and scales of each entry."""
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn(groups * out, d, generator=rng)
    x = torch.randn(groups, d, 2 * d, generator=rng) + torch.randn(groups, 1, 2 * d, generator=rng)
    grid = Grid(bits, symmetric=False)
    scale = torch.full_like(weight, 4.0 / (grid.high - grid.low))
    zero = torch.full_like(weight, float((grid.high + grid.low + 1) // 2))
    rounded = ((weight / scale + zero).round().clamp(grid.low, grid.high) - zero) * scale
    return weight, rounded, (x @ x.mT).double(), scale, zero, grid


def cost(weight: Tensor, q: Tensor, moment: Tensor, damping: float) -> Tensor:
    """Of every row, with what damping adds."""
    h = moment + damping * moment.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(moment.shape[1])
    e = (weight - q).double().unflatten(0, (len(h), -1))
    return ((e @ h) * e).sum(-1).flatten()


def one_by_one(weight: Tensor, q: Tensor, moment: Tensor, scale: Tensor, zero: Tensor, grid: Grid, sweeps: int):
    """The reference: every level of every entry is tried, in order."""
    q, out = q.clone(), len(weight) // len(moment)
    for _ in range(sweeps):
        for j in range(weight.shape[1]):
            for row in range(len(weight)):
                h, tried = moment[row // out][None], []
                for code in range(int(grid.low), int(grid.high) + 1):
                    other = q[row : row + 1].clone()
                    other[0, j] = (code - zero[row, j]) * scale[row, j]
                    tried.append((float(cost(weight[row : row + 1], other, h, 0.01)), other))
                q[row] = min(tried, key=lambda each: each[0])[1]
    return q


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.integers(1, 2), st.integers(2, 6), st.integers(2, 3), st.integers(0, 99))
def test_descent_takes_the_best_level_of_every_entry(groups: int, out: int, d: int, bits: int, seed: int) -> None:
    weight, rounded, total, scale, zero, grid = problem(groups, out, d, bits, seed)
    found = descend(weight, rounded, total, scale, zero, grid, 0.01, 2)
    expected = one_by_one(weight, rounded, total, scale, zero, grid, 2)
    torch.testing.assert_close(cost(weight, found, total, 0.01), cost(weight, expected, total, 0.01), rtol=1e-4, atol=0)


@pytest.mark.parametrize("d", [24, COLUMNS + 40])
def test_no_row_is_worse_than_compensation_left_it_and_most_are_better(d: int) -> None:
    weight, _, total, scale, zero, grid = problem(1, 16, d, 3, 0)
    rounded = gptq_columns(weight, Factor.of(total[0].clone(), 0.01), scale[:, :1], zero[:, :1], grid)[0]
    found = descend(weight, rounded, total, scale, zero, grid, 0.01, 4)
    before, after = cost(weight, rounded, total, 0.01), cost(weight, found, total, 0.01)
    assert (after <= before * (1 + 1e-9)).all() and after.sum() < 0.97 * before.sum()
    torch.testing.assert_close(found, ((found / scale).round()) * scale)  # on the grid


def test_a_group_that_sees_nothing_stays() -> None:
    weight, rounded, total, scale, zero, grid = problem(2, 3, 4, 3, 0)
    total[1] = 0
    assert torch.equal(descend(weight, rounded, total, scale, zero, grid, 0.01, 2)[3:], rounded[3:])


@pytest.mark.parametrize("kind", KINDS)
def test_a_moment_about_the_mean_is_a_covariance(kind: str) -> None:
    layer, _, x = convolution(kind)
    x = x + 3
    total = centred(moment(layer, x).double(), *sums(layer, x))
    seen = unfolded(layer, x.double())
    expected = torch.stack([torch.cov(each, correction=0) * each.shape[1] for each in seen])
    torch.testing.assert_close(total, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_inputs_that_never_vary_are_fitted() -> None:
    torch.manual_seed(0)
    teacher = classifier(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)))
    batch = {"pixel_values": torch.ones(8, 3, 2, 2)}
    student = one_pass(quantize_model(teacher, QuantConfig(Grid(2), None)), teacher, [batch])
    assert miss(student, teacher, batch) < 1e-9  # its bias makes up for all of it


def test_a_mean_that_comes_back_costs_no_weight() -> None:
    """With a bias behind it, weights serve what varies, whatever the mean is."""
    torch.manual_seed(0)
    teacher = classifier(nn.Sequential(nn.Flatten(), nn.Linear(48, 8)))
    x = torch.randn(64, 3, 4, 4)
    config = QuantConfig(Grid(2, symmetric=False), None)
    codes = []
    for pixels in (x, x + 3):
        student = one_pass(quantize_model(teacher, config), teacher, [{"pixel_values": pixels}])
        layer = next(each for _, each in quant_layers(student))
        codes.append(layer.weight_quantizer.codes(layer.rows().flatten(1))[0])
    assert (codes[0] == codes[1]).float().mean() > 0.98  # what stays on the diagonal turns the odd one
