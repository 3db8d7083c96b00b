"""What one pass and compensation cannot fit is told before anything is moved, and what to do."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from vision_toys import cnn, images, resnet
from zsaq import Grid, ImageSpec, QuantConfig, compensate, correct_batch_norm, load, one_pass, quantize, quantize_model
from zsaq.train.optim import NotFinite
from zsaq.vision.models import blocks, classifier
from zsaq.vision.onepass import onepass, onepass_kl
from zsaq.vision.presets import preset_config

WEIGHTS = QuantConfig(Grid(3, symmetric=False), None)
BATCH = {"pixel_values": images(4, 16)}


def fits(teacher: nn.Module, student: nn.Module) -> list[Any]:
    return [
        lambda batches: one_pass(student, teacher, batches),
        lambda batches: correct_batch_norm(student, teacher, batches),
        lambda batches: compensate(student, batches, blocks(student)),
    ]


@pytest.mark.parametrize(
    ("batches", "told"),
    [
        ([{"pixel_values": images(4, 16)[:0]}], "1 batches with no sample"),
        ([], "0 batches with no sample"),
        ([{}], "1 batches with no sample"),
        (BATCH, "a str that is no dict of tensors"),
        (images(4, 16), "a Tensor that is no dict of tensors"),
        ([{"pixel_values": images(1, 16).tolist()}], "a dict that is no dict of tensors"),
    ],
    ids=["empty", "none", "keyless", "bare dict", "bare tensor", "lists"],
)
def test_what_is_no_batch_is_told(batches: Any, told: str) -> None:
    teacher = classifier(cnn())
    student = quantize_model(teacher, WEIGHTS)
    before = copy.deepcopy(student.state_dict())
    for fit in fits(teacher, student):
        with pytest.raises(ValueError, match=told):
            fit(batches)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_the_order_of_keys_is_none_of_a_batch() -> None:
    teacher, labels = classifier(cnn()), torch.arange(4)
    parts = [{**BATCH, "labels": labels}, {"labels": labels, **BATCH}]
    for fit in fits(teacher, quantize_model(teacher, WEIGHTS)):
        fit(parts)
    with pytest.raises(ValueError, match=r"2 batches with samples of 2 kinds, such as .*pixel_values.*the same keys"):
        one_pass(quantize_model(teacher, WEIGHTS), teacher, [BATCH, parts[0]])


def test_a_student_that_was_fitted_is_not_fitted_again() -> None:
    teacher = classifier(cnn())
    student = one_pass(quantize_model(teacher, WEIGHTS), teacher, [BATCH])
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(ValueError, match=r"module.conv1.weight of the student is not .*fresh zsaq.quantize_model"):
        one_pass(student, teacher, [BATCH])
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    narrow = copy.deepcopy(teacher).bfloat16()
    one_pass(quantize_model(teacher, WEIGHTS), narrow, [BATCH])  # its own, in fewer bits


def test_a_loaded_student_and_the_teacher_itself_hold_nothing_to_fit(tmp_path: Any) -> None:
    teacher = resnet()
    student = quantize_model(teacher, WEIGHTS)
    student.save_pretrained(tmp_path)
    for each in (load(tmp_path), teacher):
        with pytest.raises(ValueError, match=r"no layer that is quantized; give a fresh"):
            one_pass(each, teacher, [BATCH])


def test_layers_of_one_weight_are_told() -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 3), nn.Flatten(), nn.Linear(432, 4))
    net[2].weight = net[0].weight
    teacher = classifier(net)
    student = quantize_model(teacher, WEIGHTS)
    for fit in fits(teacher, student)[::2]:
        with pytest.raises(ValueError, match=r"module.0 and module.2 share a weight.*\"module.0\", None"):
            fit([BATCH])
    floats = replace(WEIGHTS, rules=(("module.0", None), ("module.2", None), *WEIGHTS.rules))  # as the message says
    one_pass(quantize_model(teacher, floats), teacher, [BATCH])


def test_a_block_that_is_a_layer_is_told_by_its_name() -> None:
    teacher = classifier(cnn())
    student = quantize_model(teacher, WEIGHTS)
    with pytest.raises(NotFinite, match=r"inputs of module.conv1 are not finite"):
        compensate(student, [{"pixel_values": BATCH["pixel_values"] * float("nan")}], blocks(student))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_net_in_16_bits_gets_a_student_in_float32(dtype: torch.dtype) -> None:
    teacher: Any = resnet().to(dtype)
    student = quantize(teacher, "w4a4", method="onepass-noise", spec=ImageSpec(4, 32), images=4)
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in teacher.parameters()} == {dtype}


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"pixel_values": torch.randn(4, 1, 32, 32)}, r"a batch is \(4, 1, 32, 32\).*B, 3, 32, 32"),
        ({"pixel_values": torch.randn(4, 3, 16, 16)}, "a batch is .*B, 3, 32, 32"),
        ({"x": torch.randn(4, 3, 32, 32)}, "a batch is dict"),
        (torch.randn(4, 3, 32, 32), "a batch is Tensor"),
        ({"pixel_values": torch.ones(4, 3, 32, 32, dtype=torch.uint8)}, "pixel_values are torch.uint8; give floats"),
    ],
    ids=["channels", "size", "key", "tensor", "bytes"],
)
@pytest.mark.parametrize("fit", [onepass, onepass_kl])
def test_what_is_no_image_of_the_teacher_is_told(fit: Any, batch: Any, message: str) -> None:
    teacher, spec = resnet(), ImageSpec(4, 32)
    with pytest.raises(ValueError, match=message):
        fit(teacher, preset_config("w4a4", "brecq", teacher, spec), spec, batch)


@pytest.mark.parametrize("method", ["onepass-kl", "adasg"])
def test_a_temperature_of_nothing_costs_no_image(method: str) -> None:
    with pytest.raises(ValueError, match=r"temperature is 0, .*give a positive number"):
        quantize(resnet(), "w4a4", method=method, spec=ImageSpec(4, 32), temperature=0)
