"""Inputs that several layers of a loaded student share are rounded once, and never wrongly so."""

from typing import Any

import pytest
import torch
from torch import nn

from zsaq import Grid, Quantizer
from zsaq.quant.codes import nearest, round_to_grid, values_of
from zsaq.quant.dynamic import MinMax
from zsaq.quant.last import Last

GRIDS = [Grid(8, per="token"), Grid(4, symmetric=False, per="token"), Grid(8, per=4), Grid(4, per=4, levels="nf4")]


class Counted(nn.Module):
    """Hears how often a quantizer rounds."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.calls = 0
        self.quantizer = Quantizer(grid, MinMax())
        self.quantizer.register_forward_pre_hook(self.heard)

    def heard(self, *_: Any) -> None:
        self.calls += 1


@pytest.mark.parametrize("grid", GRIDS)
def test_one_tensor_is_rounded_once_and_another_anew(grid: Grid) -> None:
    last, one, x = Last(), Counted(grid), torch.randn(2, 3, 8)
    with torch.no_grad():
        first = last.rounded(x, one.quantizer)
        assert last.rounded(x, one.quantizer) is first and one.calls == 1
        assert torch.equal(first, one.quantizer(x)) and one.calls == 2
        same = x.clone()
        assert last.rounded(same, one.quantizer) is not first and one.calls == 3
        same.mul_(2)  # written to
        assert torch.equal(last.rounded(same, one.quantizer), one.quantizer(same)) and one.calls == 5
        other = Counted(Grid(2, per="token"))
        assert torch.equal(last.rounded(same, other.quantizer), other.quantizer(same))
        del same
        assert last.of is None and last.answer is None
    x.requires_grad_()
    assert last.rounded(x, one.quantizer).requires_grad
    with torch.inference_mode():
        made = torch.randn(2, 8)
        assert torch.equal(last.rounded(made, one.quantizer), one.quantizer(made))


@pytest.mark.parametrize("grid", [*GRIDS, Grid(3, per="token"), Grid(2, per="token", levels="half")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_in_one_buffer_is_the_plain_rule(grid: Grid, dtype: torch.dtype) -> None:
    x, quantizer = torch.randn(5, 8).to(dtype), Quantizer(grid, MinMax())
    view = x.unflatten(-1, (-1, grid.per)) if isinstance(grid.per, int) else x
    scale, zero = quantizer.ranges(view, grid)
    plain = (values_of(round_to_grid(view, scale, zero, grid), zero, grid) * scale).to(dtype).reshape(x.shape)
    assert torch.equal(nearest(view, scale, zero, grid).to(dtype).reshape(x.shape), plain)
    assert torch.equal(quantizer(x), plain)
    with torch.no_grad():
        assert torch.equal(quantizer(x), plain)
