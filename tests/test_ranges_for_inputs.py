"""Ranges for the inputs that a layer meets, and lopsided grids, which negative scales turn around."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from toys import batches, llama
from zsaq import Grid, QuantConfig, gptq, quantize_model
from zsaq.language.models import blocks
from zsaq.language.sam_sga import grid_step
from zsaq.quant.codes import groups, round_to_grid, values_of
from zsaq.quant.layers import quant_layers
from zsaq.quant.ranges import MinMax, MSEOptimal, search

FACTORS = [1.0, 0.8, 0.5, 0.3]


def miss(x: Tensor, scale: Tensor, zero: Any, grid: Grid, importance: Tensor) -> Tensor:
    rounded = values_of(round_to_grid(x, scale, zero, grid), zero, grid) * scale
    return ((rounded - x).square() * importance).sum(-1, keepdim=True)


@given(
    st.integers(2, 8), st.booleans(), st.sampled_from(["channel", "tensor", 4]),
    st.sampled_from(["float32", "float16"]), st.integers(0, 9),
)  # fmt: skip
def test_the_best_of_all_factors_and_sides_is_taken(
    bits: int, symmetric: bool, per: Any, scales: str, seed: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    grid = Grid(bits, symmetric=symmetric, per=per, scales=scales)
    x = groups(torch.randn(5, 12, generator=rng), grid)
    importance = torch.rand(x.shape, generator=rng) ** 4
    scale, zero = search(x, grid, factors=FACTORS, importance=importance)
    widest, _ = MinMax()(x, grid)
    sides = (1, -1) if symmetric else (1,)
    tried = [grid.scaling.held(widest * factor * side, None) for factor in FACTORS for side in sides]
    least = torch.stack([miss(x, each, zero, grid, importance) for each in tried]).amin(0)
    assert torch.allclose(miss(x, scale, zero, grid, importance), least)


def test_what_meets_a_large_input_is_rounded_more_finely() -> None:
    torch.manual_seed(0)
    grid = Grid(3, per=32)
    x, importance = groups(torch.randn(64, 128), grid), torch.ones(64, 4, 32)
    importance[..., 0] = 1000.0
    even = miss(x, *search(x, grid), grid, importance).sum()
    assert miss(x, *search(x, grid, importance=importance), grid, importance).sum() < 0.5 * even


@pytest.mark.parametrize("dead", [0, 4, 12])
def test_inputs_that_are_never_there_leave_finite_scales(dead: int) -> None:
    grid = Grid(3, per=4)
    importance = torch.ones(3, 12)
    importance[:, :dead] = 0.0
    scale, _ = search(groups(torch.randn(3, 12), grid), grid, importance=groups(importance, grid))
    assert scale.isfinite().all() and (scale != 0).all()


@pytest.mark.parametrize("learned", [False, True])
def test_only_ranges_that_were_searched_change(learned: bool) -> None:
    torch.manual_seed(0)
    grid = Grid(2)
    x, importance = torch.randn(4, 8), torch.tensor([100.0] + [1e-3] * 7).expand(4, 8)
    ranges = MSEOptimal(x, grid, learned)
    before = ranges.scale.detach().clone()
    ranges.weigh(x, grid, importance)
    assert torch.equal(ranges.scale, search(x, grid, importance=importance)[0]) != torch.equal(ranges.scale, before)
    assert (ranges.trained() is not None) == learned
    MinMax().weigh(x, grid, importance)


@pytest.mark.parametrize("config", ["w3a16g16", "w4a8g16", "w2a16g16-integer", "w2a16g16", "w3a8"])
def test_a_grid_that_is_turned_around_is_saved_and_read_as_it_is(config: str, tmp_path: Path) -> None:
    """Scales are negative where the grid reaches further to one side, and nowhere else."""
    torch.manual_seed(0)
    texts, student = batches(2), quantize_model(llama(), QuantConfig.parse(config))
    gptq(student, texts, blocks(student))
    inside = [layer for name, layer in quant_layers(student) if isinstance(layer, nn.Linear) and "layers" in name]
    scales = [layer.weight_quantizer.ranges(layer.rows(), layer.weight_quantizer.grid)[0] for layer in inside]
    turned = max(float((scale < 0).float().mean()) for scale in scales)
    assert (turned > 0.2) == inside[0].weight_quantizer.grid.lopsided
    with torch.no_grad():
        expected = student(texts[0]["input_ids"]).logits
        student.save_pretrained(tmp_path)
        assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(texts[0]["input_ids"]).logits, expected)


def test_steps_of_training_do_not_feel_a_turned_grid() -> None:
    """Rates count in grid steps, which a negative scale has as well as a positive one."""
    student = gptq(quantize_model(llama(), "w3a16g8"), batches(2), blocks(llama()))
    inner = [
        layer.weight_quantizer.codes(layer.rows().flatten(1))[1]
        for name, layer in quant_layers(student)
        if "embed" not in name
    ]
    assert any(bool((scale < 0).any()) for scale in inner)
    assert grid_step(student) == pytest.approx(float(torch.stack([scale.abs().mean() for scale in inner]).mean()))
