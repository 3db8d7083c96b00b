"""ggml's layouts beside the package that reads them, and which of them a layer gets."""

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from zsaq.deploy.gguf.blocks import store
from zsaq.deploy.gguf.layouts import LAYOUTS, Layout
from zsaq.quant.config import Grid, QuantConfig
from zsaq.quant.layers import weight_quantizer
from zsaq.quant.packed import PackedLayer
from zsaq.quant.packed_model import become_packed, packed_rows


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
@given(seed=st.integers(0, 2**32 - 1))
def test_what_is_laid_out_is_read_back(layout: Layout, seed: int) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(layout.low, layout.high + 1, (5, layout.size))
    scales = (rng.standard_normal((5, 1)) * 0.01).astype(np.float16)
    rows = layout.lay((codes - layout.low).astype(np.uint8), scales)
    kind = gguf.GGMLQuantizationType[layout.name]
    assert gguf.GGML_QUANT_SIZES[kind] == (layout.size, rows.shape[1])
    want = (codes + layout.offset) * (scales.astype(np.float32) / layout.unit)
    np.testing.assert_array_equal(gguf.dequantize(rows, kind), want.astype(np.float32))


def packed(grid: Grid, columns: int = 512, size: float = 0.1) -> PackedLayer:
    """A layer whose weights are rounded to that grid."""
    torch.manual_seed(0)
    layer = nn.Linear(columns, 6)
    with torch.no_grad():
        layer.weight.normal_().mul_(size)
    config = QuantConfig(grid)
    buffers = packed_rows(layer.weight.detach(), weight_quantizer(layer, config))
    become_packed(layer, grid, None, None)
    assert isinstance(layer, PackedLayer)
    for key, value in buffers.items():
        layer.register_buffer(key, value)
    return layer


STORED = {
    "Q2_K": [Grid(2, per=256, levels="half"), Grid(2, levels="half"), Grid(2, per="tensor", levels="half")],
    "TQ2_0": [Grid(2, per=256, levels="ternary"), Grid(2, per=512, levels="ternary")],
    "Q3_K": [Grid(3), Grid(3, per=256), Grid(2, per=256, levels="integer"), Grid(2, symmetric=False)],
    "Q4_0": [
        Grid(4, per=32), Grid(4, per=128), Grid(4), Grid(3, per=64), Grid(3, per=128), Grid(2, per=32, levels="half"),
        Grid(2, per=64, levels="ternary"), Grid(2, per=32, levels="integer"), Grid(3, symmetric=False),
        Grid(4, per=32, scales="float16"),
    ],
    "Q5_0": [Grid(5, per=32), Grid(4, symmetric=False, per=32), Grid(4, symmetric=False)],
    "Q6_K": [Grid(6), Grid(6, per=256), Grid(5, symmetric=False)],
    "Q8_0": [Grid(8, per=32), Grid(8), Grid(7, per=64), Grid(6, per=64), Grid(7, symmetric=False)],
}  # fmt: skip


@pytest.mark.parametrize("name, grid", [(name, grid) for name, grids in STORED.items() for grid in grids], ids=repr)
def test_a_layer_gets_the_smallest_type_that_holds_it(name: str, grid: Grid) -> None:
    layer = packed(grid)
    stored = store(layer)
    assert stored.layout.name == name
    values = gguf.dequantize(stored.rows, gguf.GGMLQuantizationType[name])
    np.testing.assert_array_equal(values, stored.values)
    weight = layer.weight.detach().numpy()
    np.testing.assert_allclose(values, weight, rtol=2.0**-11, atol=0 if grid.symmetric else 1e-8)
    if grid.scales == "float16":
        assert stored.scale_changed == 0
        np.testing.assert_array_equal(values, weight)
    else:
        assert 0 < stored.scale_changed <= 2.0**-11


def test_halves_of_two_bits_need_no_bit_of_the_mantissa() -> None:
    grid = Grid(2, per=256, levels="half", scales="float16")
    layer = packed(grid)
    with torch.no_grad():
        layer.scale.view(torch.int16).bitwise_or_(1)  # the last bit of each
    np.testing.assert_array_equal(store(layer).values, layer.unpacked(torch.float32).numpy())


def test_rows_of_zeros_stay_zeros() -> None:
    assert not store(packed(Grid(4, per=32), size=0.0)).values.any()


@pytest.mark.parametrize(
    "grid, columns, words",
    [
        (Grid(4, per=16), 512, "16 share a scale"),
        (Grid(4), 48, "48 share a scale"),
        (Grid(8, symmetric=False), 512, "8 bits"),
        (Grid(4, per=64, levels="nf4"), 512, "nf4 levels"),
        (Grid(4, per=32, levels="fp4", scales="e8m0"), 512, "fp4 levels"),
    ],
)
def test_what_no_type_holds_is_refused(grid: Grid, columns: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        store(packed(grid, columns))


@pytest.mark.parametrize("size", [1e-6, 3e5])
def test_scales_that_float16_does_not_hold_are_refused(size: float) -> None:
    with pytest.raises(ValueError, match="-s16"):
        store(packed(Grid(4, per=32), size=size))
