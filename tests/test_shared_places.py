"""Modules that a pass calls at several places have one static range for them, and it is said."""

import warnings

import pytest
import torch
from torch import Tensor, nn

from zsaq import calibrate, quantize_model
from zsaq.vision.models import classifier
from zsaq.vision.presets import brecq, uniform


class Shared(nn.Module):
    """A ReLU after each of two convolutions, one for both or one for each; the second convolution twice, if asked."""

    def __init__(self, relus: int, again: bool) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relus = nn.ModuleList(nn.ReLU() for _ in range(relus))
        self.linear, self.again = nn.Linear(4, 4), again

    def forward(self, x: Tensor) -> Tensor:
        x = self.relus[-1](self.two(self.relus[0](self.one(x))))
        return self.linear((self.two(x) if self.again else x).mean((2, 3)))


@pytest.mark.parametrize("batches", [1, 3])
@pytest.mark.parametrize(
    ("relus", "again", "preset", "named"),
    [
        (1, False, uniform, r"calls module\.relus\.0 at several"), (2, False, uniform, None),
        (1, False, brecq, None), (2, True, brecq, r"calls module\.two at several"),
    ],
)  # fmt: skip
def test_one_range_for_several_places_is_said(relus: int, again: bool, preset, named, batches: int) -> None:
    teacher = classifier(Shared(relus, again)).eval()
    student = quantize_model(teacher, preset("w4a4", teacher))
    shown = [{"pixel_values": torch.randn(2, 3, 8, 8)} for _ in range(batches)]
    for _ in range(2):  # the second goes on from the first
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            calibrate(student, shown)
        assert [named is not None] * len(caught) == [True] * (named is not None)
        if named is not None:
            with pytest.warns(UserWarning, match=named):
                calibrate(student, shown)
