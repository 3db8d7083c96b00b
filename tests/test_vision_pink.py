"""Pink images: the spectrum and the colours of photographs, and that rows and any spec take them."""

from typing import Any

import pytest
import torch

from vision_toys import CLASSES, convnext
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.images import images_of
from zsaq.vision.job import ImageJob
from zsaq.vision.methods import METHODS
from zsaq.vision.sources.pink import opponents, pink_images


def test_colours_differ_less_than_brightness_and_other_channels_are_as_they_are() -> None:
    turn = opponents(3)
    torch.testing.assert_close(turn.T @ turn, (3 * torch.tensor([0.92, 0.07, 0.01])).diag(), atol=1e-6, rtol=0)
    assert turn[:, 0].min() == turn[:, 0].max() > 0 and turn[:, 1:].sum(0).abs().max() < 1e-6
    assert all(torch.equal(opponents(count), torch.eye(count)) for count in (1, 2, 4))


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [32, 63])
def test_amplitudes_fall_with_frequency_as_the_law_says(size: int, channels: int) -> None:
    pixels = pink_images(ImageSpec(5, size, channels), images=256)["pixel_values"]
    power = torch.fft.fft2(pixels).abs().square().mean((0, 1))
    for at in ((0, 2), (0, 8), (3, 4), (-5, 0)):
        expected = (at[0] ** 2 + at[1] ** 2) ** -1.2
        torch.testing.assert_close(power[at] / power[0, 1], torch.tensor(expected), rtol=0.25, atol=0)
    torch.testing.assert_close(power[0, 0] / power[0, 1], torch.tensor(1.0), rtol=0.25, atol=0)
    torch.testing.assert_close(pixels.square().mean(), torch.tensor(1.0), rtol=0.1, atol=0)


def test_channels_of_three_are_bright_together() -> None:
    pixels = pink_images(ImageSpec(5, 32), images=128)["pixel_values"]
    together = torch.cov(pixels.transpose(0, 1).flatten(1)) / pixels.square().mean()
    expected = opponents(3) @ opponents(3).T
    torch.testing.assert_close(together, expected, rtol=0.1, atol=0.02)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_an_image_of_any_size_is_finite(size: int) -> None:
    pixels = pink_images(ImageSpec(5, size, 1), images=2)["pixel_values"]
    assert pixels.shape == (2, 1, size, size) and pixels.dtype == torch.float32 and pixels.isfinite().all()


def test_a_row_has_them_by_name_the_same_for_a_seed() -> None:
    spec = ImageSpec(CLASSES, 32)
    batch: Any = images_of(ImageJob(convnext(), spec), "pink", 3, images=4)
    assert torch.equal(batch["pixel_values"], pink_images(spec, images=4, seed=3)["pixel_values"])
    assert not torch.equal(batch["pixel_values"], pink_images(spec, images=4)["pixel_values"])
    assert METHODS["onepass-pink"].inputs == "noise with the spectrum and the colours of photographs"


def test_pixels_are_float32_under_any_default() -> None:
    expected = pink_images(ImageSpec(5, 8), images=2)["pixel_values"]
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(pink_images(ImageSpec(5, 8), images=2)["pixel_values"], expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="images is 0; give at least 1"):
        pink_images(ImageSpec(5, 8), images=0)
