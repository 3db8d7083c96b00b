"""A pair of teacher and 2-bit student whose gradients are matched."""

from typing import Any

from torch import Tensor, nn

from zsaq import Grid, Pair, QuantConfig, quantize_model
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.losses.matching import LayerGradient
from zsaq.vision.models import classifier

SPEC = ImageSpec(4, 16)


def models(teacher: Any) -> tuple[Any, Any]:
    model = classifier(teacher).requires_grad_(False)
    return model, quantize_model(model, QuantConfig(weight=Grid(2))).requires_grad_(False)


def pair(teacher: nn.Module, student: nn.Module, gradients: LayerGradient, pixels: Tensor) -> Pair:
    return Pair(teacher, student, {"pixel_values": pixels}, gradients.captures)
