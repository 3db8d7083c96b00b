"""Calibrated students of every family of vision, and what they answer, bit for bit."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vision_toys import convnext, deit, images, mobilenet, regnet, resnet, swin, vit
from zsaq import Grid, QuantConfig, calibrate, quantize_model
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.presets import brecq, uniform

FAMILIES: dict[str, tuple[Callable[[], Any], int]] = {
    "resnet": (resnet, 32),
    "bottleneck": (lambda: resnet(layer_type="bottleneck"), 32),
    "regnet": (regnet, 32),
    "mobilenet": (mobilenet, 32),
    "convnext": (convnext, 32),
    "vit": (vit, 16),
    "deit": (deit, 16),
    "swin": (swin, 32),
}
CNNS = ("resnet", "bottleneck", "regnet", "mobilenet")


def student_of(family: str, preset: Callable[..., QuantConfig] = uniform, text: str = "w4a4") -> Any:
    """A calibrated student whose weights have moved since, as training moves them."""
    make, size = FAMILIES[family]
    teacher = make()
    config = brecq(text, teacher, ImageSpec(4, size)) if preset is brecq else preset(text, teacher)
    student = calibrate(quantize_model(teacher, config), [{"pixel_values": images(4, size, seed=s)} for s in range(3)])
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    return student


@torch.no_grad()
def bits(model: nn.Module, size: int) -> Tensor:
    return model(pixel_values=images(3, size, seed=9)).logits.view(torch.int32)


def both() -> Any:
    """A student with static ranges of either kind."""
    teacher = resnet()
    config = uniform("w4a4", teacher)
    return quantize_model(teacher, replace(config, input=Grid(8, symmetric=False, per="tensor")))
