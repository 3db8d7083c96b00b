"""Teachers and images of 16 and of 64 bits."""

from typing import Any

import pytest
import torch

from vision_toys import CLASSES, cnn, images, resnet
from zsaq import ImageSpec, quantize
from zsaq.vision.job import ImageJob
from zsaq.vision.sources.crops import crop

IMAGES = {"images": 8, "image_steps": 2, "steps": 2, "batch_size": 4}
GENERATED = {"steps": 2, "batch_size": 4, "warmup": 1, "calibration": 2}
FEW = {"synq": IMAGES, "hast": IMAGES, "intraq": IMAGES, "gdfq": GENERATED}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_net_of_another_dtype_is_shown_its_images(dtype: torch.dtype) -> None:
    job = ImageJob(resnet().to(dtype), ImageSpec(CLASSES, 32))
    assert {parameter.dtype for parameter in job.teacher.parameters()} == {dtype}


@pytest.mark.parametrize(("method", "options"), FEW.items())
def test_a_student_of_a_16_bit_teacher_learns_in_float32(method: str, options: dict[str, Any]) -> None:
    teacher = cnn().bfloat16()
    before = {name: value.float() for name, value in teacher.named_parameters()}
    student = quantize(teacher, "w4a4", method=method, spec=ImageSpec(CLASSES, 16), effort="light", **options)
    after = {name.removeprefix("module."): value for name, value in student.named_parameters()}
    assert {after[name].dtype for name in before} == {torch.float32}
    assert not any(torch.equal(after[name], value) for name, value in before.items() if "bias" not in name)


@pytest.mark.parametrize("method", ["onepass", "onepass-blocks", "onepass-kl"])
def test_one_pass_fits_a_student_of_a_float64_teacher(method: str) -> None:
    teacher = cnn().double()
    with torch.no_grad():
        teacher.linear.weight += 1e-9  # which float32 does not hold
    few: dict[str, Any] = {"images": 4, "image_steps": 1} | (
        {"steps": 1, "batch_size": 2} if method != "onepass" else {}
    )
    student = quantize(teacher, "w4a4", method=method, spec=ImageSpec(CLASSES, 16), **few)
    assert {value.dtype for value in student.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_crops_of_16_bits_are_those_of_32(dtype: torch.dtype) -> None:
    pixels, boxes = images(4, 16).to(dtype), torch.tensor([[0, 0, 16, 16], [1, 2, 9, 7], [3, 3, 8, 8], [0, 5, 11, 11]])
    flipped = torch.tensor([False, True, False, True])
    cut = crop(pixels, boxes, flipped)
    assert cut.dtype == dtype and torch.equal(cut, crop(pixels.float(), boxes, flipped).to(dtype))
    few: dict[str, Any] = {"spec": ImageSpec(CLASSES, 16), "effort": "light", "steps": 1, "batch_size": 2}
    quantize(cnn(), "w4a4", method="synq-real", images=4, real=lambda: pixels, **few)
    quantize(cnn(), "w4a4", method="distill", batches={"pixel_values": pixels}, calibration=1, **few)
