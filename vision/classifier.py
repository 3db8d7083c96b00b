"""Plain image classifiers under the signature of transformers."""

from typing import final

from torch import Tensor, nn
from transformers import PreTrainedModel


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
