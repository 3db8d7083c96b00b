"""A group size that does not divide is refused with the sizes that divide every layer."""

import re

import pytest
from torch import nn

from zsaq import quantize_model


def test_group_sizes_that_fit_every_layer_are_named() -> None:
    net = nn.Sequential(nn.Linear(64, 24), nn.Linear(24, 128), nn.Linear(128, 3))
    text = "0: the group size 128 does not divide the input dimension 64, nor those of 1 more of 3 layers; give one "
    with pytest.raises(ValueError, match=re.escape(text + "that divides every layer: 2, 4, 8, or")):
        quantize_model(net, "w4a16g128")
    quantize_model(net, "w4a16g8")


def test_where_no_group_size_fits_that_is_said() -> None:
    with pytest.raises(ValueError, match=r"^0: .* dimension 9; no other divides every layer, or one scale per channel"):
        quantize_model(nn.Sequential(nn.Linear(9, 8), nn.Linear(8, 3)), "w4a16g8")
