"""Static ranges: what they refuse, what a failed calibration leaves, and that a loaded student is calibrated too."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from vision_students import both
from vision_toys import images
from zsaq import Grid, Quantizer, Static, calibrate, load
from zsaq.quant.ranges import static_ranges

GRID = Grid(8, symmetric=False, per="tensor")


def student() -> tuple[nn.Sequential, Static]:
    ranges = Static(GRID)
    return nn.Sequential(Quantizer(GRID, ranges)), ranges


def held(ranges: Static) -> tuple[float, float, int, float, float]:
    observer = ranges.observer
    return float(ranges.scale), float(ranges.zero), observer.updates, float(observer.lo), float(observer.hi)


@pytest.mark.parametrize("worst", [math.nan, math.inf, -math.inf])
def test_batches_that_are_not_finite_are_refused_and_lose_nothing(worst: float) -> None:
    model, ranges = student()
    bad = {"input": torch.tensor([[1.0, worst]])}
    with pytest.raises(ValueError, match="must be finite"):
        calibrate(model, [bad])
    with pytest.raises(ValueError, match="seen nothing"):
        model(torch.ones(1, 2))
    calibrate(model, [{"input": torch.tensor([[-1.0, 2.0]])}])
    before = held(ranges)
    assert before[0] == torch.tensor(3.0) / 255
    with pytest.raises(ValueError, match="must be finite"):
        calibrate(model, [bad])
    assert held(ranges) == before and model(torch.ones(1, 2)).isfinite().all()
    with pytest.raises(ValueError, match="must be finite"):
        ranges.hold(torch.tensor([[worst]]), torch.tensor([[worst]]))
    assert held(ranges) == before


def test_a_calibration_that_stops_halfway_leaves_nothing_to_the_next() -> None:
    (model, ranges), (other, plain) = student(), student()
    good, wild = {"input": torch.tensor([[-1.0, 2.0]])}, {"input": torch.tensor([[-50.0, 90.0]])}
    for each in (model, other):
        calibrate(each, [good])
    before = held(ranges)
    with pytest.raises(ValueError, match="no dict of tensors"):
        calibrate(model, [wild, {"input": None}])  # type: ignore[dict-item]
    assert float(ranges.scale) == before[0]
    calibrate(model, [])  # SynQ's way to keep the ranges that are there
    assert held(ranges) == before
    for each in (model, other):
        calibrate(each, [good])
    assert held(ranges) == held(plain) and plain.observer.updates == 2


def test_a_loaded_static_student_is_calibrated_as_the_original(tmp_path: Path) -> None:
    batches = [{"pixel_values": images(4, 32, seed=seed)} for seed in range(2)]
    original = calibrate(both(), [{"pixel_values": 3 * images(4, 32)}])
    original.save_pretrained(tmp_path)
    loaded = calibrate(load(tmp_path), batches)
    for ranges in static_ranges(original):
        ranges.forget()
    calibrate(original, batches)
    for ours, known in zip(static_ranges(loaded), static_ranges(original), strict=True):
        assert torch.equal(ours.scale, known.scale) and torch.equal(ours.zero, known.zero)


@pytest.mark.parametrize("spoil", [{"scale": v} for v in (math.nan, 0, -1, math.inf)] + [{"zero": 0.5}, {"zero": 999}])
def test_what_load_state_dict_brings_is_checked(spoil: dict[str, float]) -> None:
    model, ranges = student()
    ranges.hold(torch.tensor([[-1.0]]), torch.tensor([[2.0]]))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for key, value in spoil.items():
        state[f"0.ranges.{key}"].fill_(value)
    model.load_state_dict(state)
    with pytest.raises(ValueError, match=r"run zsaq\.calibrate"):
        model(torch.ones(1, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_small_range_is_finite_in_every_precision(dtype: torch.dtype) -> None:
    model, ranges = student()
    ranges.hold(torch.tensor([[0.0]]), torch.tensor([[5e-6]]))
    assert model.to(dtype)(torch.tensor([[0.0, 5e-6, 1.0]], dtype=dtype)).isfinite().all()


def test_a_dead_rectifier_is_a_range() -> None:
    model, ranges = student()
    calibrate(model, [{"input": torch.zeros(2, 3)}])
    ranges.check()
    assert torch.equal(model(torch.zeros(2, 3)), torch.zeros(2, 3))


def test_one_range_that_is_refused_leaves_all_as_they_were() -> None:
    first, last = Static(GRID), Static(GRID)
    model = nn.Sequential(Quantizer(GRID, first), Overflow(), Quantizer(GRID, last))
    calibrate(model, [{"input": torch.tensor([[-1.0, 2.0]])}])
    before = held(first), held(last)
    with pytest.raises(ValueError, match="must be finite"):
        calibrate(model, [{"input": torch.tensor([[-1.0, 300.0]])}])
    calibrated = held(first), held(last)
    assert [each[:2] for each in calibrated] == [each[:2] for each in before]


class Overflow(nn.Module):
    """Finite for small numbers alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.exp()
