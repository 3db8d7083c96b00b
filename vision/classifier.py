"""Plain image classifiers under the signature of transformers, and what classifiers answer."""

from typing import final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from zsaq.quant.modes import evaluating
from zsaq.train.pair import Capture, Out, run_model
from zsaq.train.widening import widened
from zsaq.vision.image_spec import ImageSpec


@final
class Classifier(nn.Module):
    """A plain classifier under the signature of transformers: logits [B, C] for `pixel_values` [B, channels, H, W]."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.module(pixel_values)


def classifier(module: nn.Module) -> nn.Module:
    """A teacher that takes `pixel_values=`: transformers' models as they are, others (takes and answers a Tensor)
    wrapped in `Classifier`."""
    return module if isinstance(module, PreTrainedModel | Classifier) else Classifier(module)


def class_name(model: nn.Module) -> str:
    """The class of a model, as messages tell it."""
    return type(model.module if isinstance(model, Classifier) else model).__name__


@torch.no_grad()
def answered(model: nn.Module, pixels: Tensor, captures: tuple[Capture, ...] = ()) -> Out:
    """What a classifier answers to images [B, channels, H, W] in eval mode, wherever it stands; its modules' modes and
    BatchNorm statistics are as before."""
    where = next((parameter.device for parameter in model.parameters()), None)
    with evaluating(model), widened(model):
        return run_model(model, {"pixel_values": pixels.to(where)}, captures)


def answered_as(
    model: nn.Module, spec: ImageSpec, captures: tuple[Capture, ...] = (), pixels: Tensor | None = None
) -> Out:
    """What a classifier answers to a blank image of the `spec`, or to `pixels` [B, C, S, S] of it. Raises ValueError
    for one that cannot take it."""
    blank = torch.zeros(1, spec.channels, spec.size, spec.size)
    try:
        return answered(model, blank if pixels is None else pixels, captures)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"{class_name(model)} cannot take an image of {spec} ({error}); give the ImageSpec of its images"
        ) from error
