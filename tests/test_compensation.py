"""Compensation at its ends: maps of one pixel, groups that see nothing, dampings that leave no inverse."""

import re

import pytest
import torch
from torch import nn

from vision_toys import cnn, images, resnet
from zsaq import Grid, ImageSpec, QuantConfig, compensate, one_pass, quantize, quantize_model
from zsaq.quant.layers import quant_layers
from zsaq.train.compensation import GroupedFactor, moment
from zsaq.vision.models import blocks, classifier
from zsaq.vision.presets import preset_config


@pytest.mark.parametrize("stride", [2, (3, 2)])
def test_a_strided_point_sees_a_map_of_one_pixel(stride: int | tuple[int, int]) -> None:
    student = quantize_model(nn.Sequential(nn.Conv2d(4, 6, 1, stride)), QuantConfig(Grid(4), None))
    layer = next(each for _, each in quant_layers(student))
    x = torch.randn(5, 4, 1, 1)
    torch.testing.assert_close(moment(layer, x)[0], x.flatten(1).T @ x.flatten(1))


def test_a_residual_net_of_images_of_four_pixels_is_fitted_in_one_pass() -> None:
    teacher, batch = resnet(), {"pixel_values": images(4, 4)}
    student = quantize_model(teacher, preset_config("w4a4", "brecq", teacher, spec=ImageSpec(4, 4)))
    assert one_pass(student, teacher, [batch])(**batch).logits.isfinite().all()


@pytest.mark.parametrize("damping", [1e-30, 1e300])
def test_a_damping_without_an_inverse_is_told(damping: float) -> None:
    teacher, batch = classifier(cnn()), {"pixel_values": images(2, 8)}
    config = QuantConfig(Grid(4), None)
    for fit in (
        lambda student: one_pass(student, teacher, [batch], damping=damping),
        lambda student: compensate(student, [batch], blocks(student), damping=damping),
    ):
        with pytest.raises(
            ValueError, match=rf"damping is {re.escape(repr(damping))}, with which .* no inverse; give about 0.01"
        ):
            fit(quantize_model(teacher, config))


def test_no_damping_is_told_before_images_are_made() -> None:
    with pytest.raises(ValueError, match=r"damping is 0, .*give a positive number"):
        quantize(resnet(), "w4a4", method="onepass", spec=ImageSpec(4, 32), damping=0, images=1 << 30)


def test_a_group_that_sees_nothing_is_rounded_to_nearest() -> None:
    total = torch.zeros(2, 4, 4, dtype=torch.float64)
    total[0] = torch.eye(4)
    weight, grid = torch.randn(2, 4), Grid(4)
    scale, zero = torch.full((2, 1), 0.2), torch.zeros(2, 1)
    rounded = GroupedFactor.of(total, 0.01).columns(weight, scale, zero, grid)[0]
    torch.testing.assert_close(rounded, (weight / 0.2).round().clamp(grid.low, grid.high) * 0.2)
