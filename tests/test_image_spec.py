"""What an image processor does to pixels, whatever it calls it."""

from typing import Any

import pytest
import torch
from transformers import (
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    EfficientNetImageProcessorPil,
    MobileViTImageProcessorPil,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

import zsaq
from teachers import processor
from vision_toys import CLASSES, resnet, vit
from zsaq.method import Budget
from zsaq.vision.image_spec import DEVIATION, MEAN, ImageSpec, as_processed, normalisation, shown_size
from zsaq.vision.images import images_of
from zsaq.vision.job import ImageJob
from zsaq.vision.papers.psaq import valid

HALF = ((0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (None, (MEAN, DEVIATION)),
        (ViTImageProcessorPil(), HALF),
        (ViTImageProcessorPil(image_mean=0.5, image_std=0.25), ((0.5,) * 3, (0.25,) * 3)),
        (ViTImageProcessorPil(image_mean=list(MEAN), image_std=list(DEVIATION)), (MEAN, DEVIATION)),
        (ViTImageProcessorPil(do_rescale=False, image_mean=[127.5] * 3, image_std=[127.5] * 3), HALF),
        (ViTImageProcessorPil(rescale_factor=1 / 127.5), ((0.25,) * 3, (0.25,) * 3)),
        (ViTImageProcessorPil(do_normalize=False), ((0.0,) * 3, (1.0,) * 3)),
        (ViTImageProcessorPil(do_normalize=False, do_rescale=False), ((0.0,) * 3, (0.00392157,) * 3)),
        (MobileViTImageProcessorPil(), ((0.0,) * 3, (1.0,) * 3)),
        (EfficientNetImageProcessorPil(), ((0.5,) * 3, (0.25,) * 3)),
        (CLIPImageProcessorPil(), ((0.481455, 0.457828, 0.408211), (0.26863, 0.261303, 0.275777))),
    ],
)
def test_the_normalisation_is_what_pictures_become(made: Any, expected: tuple[tuple[float, ...], ...]) -> None:
    assert normalisation(made, 3) == expected


@pytest.mark.parametrize("channels", [1, 4])
def test_pictures_may_have_other_channels(channels: int) -> None:
    made = ViTImageProcessorPil(image_mean=[0.5] * channels, image_std=[0.25] * channels)
    assert normalisation(made, channels) == ((0.5,) * channels, (0.25,) * channels)


@pytest.mark.parametrize("deviation", [-1.0, float("nan"), float("inf")])
def test_a_processor_that_shows_nothing_is_refused_at_once(deviation: float) -> None:
    made = ViTImageProcessorPil(size={"height": 16, "width": 16}, image_std=[deviation] * 3)
    with pytest.raises(ValueError, match=r"of a black picture .* give the processor of the model's images"):
        zsaq.quantize(vit(), "w8a8", method="psaq", images=2, image_steps=2, processor=made)
    with pytest.raises(ValueError, match=r"of a black picture .* give the processor of the model's images"):
        zsaq.quantize(vit(), "w8a8", method="rtn-noise", preset="psaq", images=2, processor=made)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_size_is_asked_in_the_channels_of_the_net(channels: int) -> None:
    sizes: dict[str, Any] = {"image_size": 16, "patch_size": 4, "num_channels": channels, "num_labels": 4}
    config = ViTConfig(**sizes, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    size = {"height": 16, "width": 16}
    made = ViTImageProcessorPil(size=size, image_mean=[0.5] * channels, image_std=[0.5] * channels)
    student = zsaq.quantize(ViTForImageClassification(config).eval(), "w8a8", method="rtn-noise", processor=made)
    with torch.no_grad():
        assert student(pixel_values=torch.zeros(1, channels, 16, 16)).logits.shape == (1, 4)


def test_pictures_may_have_channels_that_pil_has_no_mode_for() -> None:
    made = ViTImageProcessorPil(size={"height": 16, "width": 16}, image_mean=[0.5, 0.25], image_std=[0.5, 0.25])
    assert normalisation(made, 2) == ((0.5, 0.25), (0.5, 0.25))


@pytest.mark.parametrize("channels", [1, 5])
def test_a_processor_of_other_channels_is_refused_in_words(channels: int) -> None:
    with pytest.raises(ValueError, match=rf"makes no image of a picture of {channels} channels .*give the processor"):
        normalisation(ViTImageProcessorPil(), channels)


def test_a_student_sees_white_however_the_processor_says_it() -> None:
    seen = []
    for more in ({}, {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3}):
        made = ViTImageProcessorPil(size={"height": 16, "width": 16}, **more)
        budget: dict[str, Any] = {"images": 2, "image_steps": 2, "steps": 1, "batch_size": 2}
        student = zsaq.quantize(vit(), "w8a8", method="psaq-learned", processor=made, **budget)
        layer: Any = student.get_submodule("vit.embeddings.patch_embeddings.projection")
        seen.append(layer.input_quantizer(next(iter(made(images=white(), return_tensors="pt").values()))).max())
    assert seen[0] == seen[1] == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("name", ["noise", "pink"])
def test_noise_is_what_the_processor_makes_of_pictures(name: str) -> None:
    size = {"height": 16, "width": 16}
    plain, same, unit = (
        images_of(ImageJob(vit(), ImageSpec(4, 16), made), name, 1, images=64)["pixel_values"]  # type: ignore[call-overload]
        for made in (
            None,
            ViTImageProcessorPil(size=size, image_mean=list(MEAN), image_std=list(DEVIATION)),
            ViTImageProcessorPil(size=size, do_normalize=False),
        )
    )
    assert torch.equal(plain, same) and not torch.equal(plain, unit)
    picture = plain * torch.tensor(DEVIATION)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    torch.testing.assert_close(unit, picture)
    half = as_processed(plain, ViTImageProcessorPil(size=size))
    torch.testing.assert_close(half, 2 * picture - 1, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 4])
def test_noise_of_other_channels_has_the_mean_of_imagenets(channels: int) -> None:
    pixels, mean, deviation = torch.ones(2, channels, 4, 4), sum(MEAN) / 3, sum(DEVIATION) / 3
    assert as_processed(pixels, None) is pixels
    unit = as_processed(pixels, ViTImageProcessorPil(do_normalize=False))
    torch.testing.assert_close(unit, torch.full_like(pixels, mean + deviation))


def test_an_assumed_normalisation_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    budget: dict[str, Any] = {"images": 2, "image_steps": 2, "steps": 1, "batch_size": 2}
    for made, told in ((None, 1), (ViTImageProcessorPil(size={"height": 16, "width": 16}), 0)):
        zsaq.quantize(vit(), "w8a8", method="psaq-learned", processor=made, **budget)
        assert capsys.readouterr().err.count("no image processor: black and white are taken to be") == told


def white() -> Any:
    from PIL import Image

    return Image.new("RGB", (16, 16), "white")


def test_what_nobody_tells_of_a_fourth_channel_is_asked_for() -> None:
    with pytest.raises(ValueError, match="each of 4 channels, deviations above 0, or the teacher's image processor"):
        valid(ImageSpec(4, 16, 4), *normalisation(None, 4))


@pytest.mark.parametrize("deviation", [0.0, -1.0, float("nan"), float("inf")])
def test_what_no_pixel_can_be_normalised_by_is_refused(deviation: float) -> None:
    for given in (((0.5,) * 3, (0.5, deviation, 0.5)), ((0.5, float("nan"), 0.5), (0.5,) * 3)):
        with pytest.raises(ValueError, match="deviations above 0"):
            valid(ImageSpec(4, 16), *given)


def test_the_size_is_that_of_a_square_picture() -> None:
    assert shown_size(processor()) == 16
    assert shown_size(BitImageProcessorPil(crop_size={"height": 24, "width": 24})) == 24


def test_what_a_run_takes_beside_its_numbers_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    few: dict[str, Any] = {"images": 2, "image_steps": 1, "steps": 1, "batch_size": 2}
    zsaq.quantize(resnet(), "w8a8", method="plf", onepass=True, spec=32, processor=processor(), **few)
    said = capfd.readouterr().err
    assert "spec says images of 32 pixels, and the processor makes them of 16: spec counts" in said
    assert "plf: begins with one pass on 64 pyramid images of 60 steps" in said
    assert Budget("light", {"images": 2, "mixes": None}).told == "images 2; by the model, or none: mixes"
    ImageJob(resnet(), ImageSpec(CLASSES, 16), processor())
    assert capfd.readouterr().err == ""
