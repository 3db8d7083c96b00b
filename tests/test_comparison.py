"""What parity measures by: the plain rule of rounding, ties, distances, and the inputs drawn."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import MistralConfig, MistralForCausalLM

from exported import exported
from zsaq.deploy.comparison import difference, in_double, round_plainly, see
from zsaq.deploy.parity import batches_of
from zsaq.io.inputs import random_inputs
from zsaq.io.loading import load
from zsaq.quant.config import Grid
from zsaq.quant.quantizer import Quantizer
from zsaq.quant.ranges import MinMax, Static, input_range

__all__ = ["exported"]


@pytest.mark.parametrize(
    "grid",
    [
        Grid(8, per="token"), Grid(4, per=8), Grid(2, per="token"), Grid(2, per="token", levels="half"),
        Grid(8, False, "token"), Grid(8, per="tensor"), Grid(8, False, "tensor"),
    ],
    ids=str,
)  # fmt: skip
def test_the_plain_rule_is_the_quantizers(grid: Grid) -> None:
    ranges = input_range(grid)
    x = torch.randn(3, 5, 16)
    if isinstance(ranges, Static):
        ranges.hold(torch.tensor([[-1.3]]), torch.tensor([[1.9]]))
    quantizer = Quantizer(grid, ranges)
    codes, values, steps = round_plainly(x, quantizer)
    assert torch.equal(codes, quantizer.codes(x)[0].float())
    assert difference(quantizer(x), values) < 1e-6
    assert steps.count_nonzero() == 0


def test_only_what_lies_at_a_tie_may_go_either_way() -> None:
    x = torch.tensor([[127.0, 2.5, 2.501, -3.5, 0.0]])
    _, _, steps = round_plainly(x, Quantizer(Grid(8, per="token"), MinMax()))
    assert steps.tolist() == [[0, 1, 0, 1, 0]]


def test_what_is_not_finite_or_shaped_otherwise_is_far() -> None:
    one = torch.ones(3)
    assert difference(one, one) == 0 and difference(torch.zeros(0), torch.zeros(0)) == 0
    assert difference(one * torch.nan, one) == difference(one, one / 0) == difference(one[:2], one) > 1e300


def test_inputs_that_the_model_does_not_take_are_refused(exported: Path) -> None:
    model = load(exported)
    for shape in ((1, 25), (2,), (0, 3)):
        with pytest.raises(ValueError, match=r"shape|takes"):
            random_inputs(model, shape)
    inputs = random_inputs(model, (4, 24), 3)
    assert set(inputs) == {"input_ids", "attention_mask", "token_type_ids"} and inputs["token_type_ids"].max() == 1
    assert all(torch.equal(value, random_inputs(model, (4, 24), 3)[name]) for name, value in inputs.items())
    batches = batches_of(model, 0)
    assert [tuple(b["input_ids"].shape) for b in batches] == [(1, 2), (1, 16), (3, 24)]
    assert batches[2]["attention_mask"].sum(1).tolist() == [24, 13, 21]


@pytest.mark.parametrize("window", [4, 8, 32])
def test_every_token_of_a_checked_text_sees_one_that_is_read(window: int) -> None:
    config = MistralConfig(
        vocab_size=90, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, sliding_window=window,
    )  # fmt: skip
    for inputs in batches_of(MistralForCausalLM(config), 0):
        for row in inputs["attention_mask"]:
            assert all(row[max(0, at - window + 1) : at + 1].any() for at in range(len(row)))
    assert any((inputs["attention_mask"] == 0).any() for inputs in batches_of(MistralForCausalLM(config), 0))


class InPlace(torch.nn.Module):
    """Goes on in the memory of what its layer took and put out, as DeBERTa does."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.linear(x)
        x.zero_()
        return {"logits": y.mul_(0.5)}


def test_a_model_that_draws_is_watched_drawing_alike() -> None:
    model = torch.nn.Dropout().train()  # draws in this mode, as masked autoencoders do in every
    wrapped: Any = lambda x: {"logits": model(x)}  # noqa: E731
    wrapped.named_modules = lambda: [("", model)]
    before = torch.random.get_rng_state()
    one, other = (see(wrapped, [], {"x": torch.ones(64)})[0]["logits"] for _ in range(2))
    assert torch.equal(one, other) and torch.equal(before, torch.random.get_rng_state())


def test_what_passes_a_layer_is_what_it_was_then() -> None:
    model, x = InPlace(), torch.randn(3, 4)
    kept = x.clone()
    _, seen = see(model, ["linear"], {"x": x})  # pyright: ignore[reportArgumentType]
    ((taken, put),) = seen["linear"]
    assert torch.equal(taken, kept) and torch.equal(put, model.linear(kept))


@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_in_double_is_the_norm(affine: bool) -> None:
    norm, x = nn.BatchNorm2d(3, affine=affine), torch.randn(4, 3, 5, 5)
    norm(x)
    want = norm.eval()(x).double()
    torch.testing.assert_close(in_double(norm, x.double()), want, rtol=1e-5, atol=1e-5)
