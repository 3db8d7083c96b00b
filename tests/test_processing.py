"""The image processor that evaluation shows pictures through: made of flags, or the model's own."""

import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessorPil

from test_imagenet import picture
from zsaq.eval import imagenet
from zsaq.eval.processing import DEVIATION, MEAN, processor_of

ROOT = Path(__file__).parent.parent


def test_flags_make_a_processor_that_resizes_and_cuts_the_middle() -> None:
    processor = processor_of([], 16, 20, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    pixels = processor(images=[picture(0, size=(40, 60))], return_tensors="pt")["pixel_values"][0]
    middle = picture(0, size=(40, 60)).resize((20, 30), Image.Resampling.BILINEAR).crop((2, 7, 18, 23))
    values = torch.frombuffer(bytearray(middle.tobytes()), dtype=torch.uint8).view(16, 16, 3).permute(2, 0, 1)
    assert torch.allclose(pixels, (values / 255 - 0.5) / 0.25, atol=1e-5)
    with pytest.raises(ValueError, match=r"^[^:]*: no image processor there; give --size"):
        processor_of([str(ROOT / "tests")], None, None, (), ())


@pytest.mark.parametrize("std", [(0.2, 0.0, 0.2), (math.nan, 1.0, 1.0), (-1.0, 1.0, 1.0), (math.inf, 1.0, 1.0), (1.0,)])
def test_what_pixels_cannot_be_normalised_with_is_refused(std: tuple[float, ...], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--mean 0\.485 .* and --std .*: give finite numbers, as many of both"):
        processor_of([], 16, None, MEAN, std)
    with pytest.raises(SystemExit):  # before the model is looked for
        imagenet.main(["--model", "m", "--data_dir", "d", "--size", "16", "--std", *map(str, std)])
    if std != (1.0,):
        ViTImageProcessorPil(image_std=list(std)).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"has an image processor with the mean .* which cannot be"):
            processor_of([str(tmp_path)], None, None, MEAN, DEVIATION)


def test_a_middle_larger_than_the_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="--resize 16 is below --size 32, and the rest would be black"):
        processor_of([], 32, 16, MEAN, DEVIATION)


def test_flags_of_a_processor_that_is_not_made_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        imagenet.main(["--model", "m", "--data_dir", "d", "--resize", "20", "--std", "1"])
    assert "--resize, --std without --size: the model's own image processor is taken" in capsys.readouterr().err
