"""Quantized layers by class swap: names, parameter identity, ties and `isinstance(m, nn.Linear)` stay.

Weights are latent floats, rounded in every forward. `offset` is where SAM stands: a leaf tensor that is added to the
dequantized weight, so its gradient is the gradient there and latent weights are never moved for a look around.
ReLU modules that round what they put out are swapped likewise.
"""

from collections.abc import Iterator
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from zsaq.quant.bounds import TINY
from zsaq.quant.codes import groups
from zsaq.quant.config import QuantConfig
from zsaq.quant.grid import Grid
from zsaq.quant.kinds import ExpertLinear, by_expert, form_of, kind_of
from zsaq.quant.quantizer import Quantizer
from zsaq.quant.ranges import RANGES, input_range
from zsaq.quant.sharded import whole


class QuantLayer(nn.Module):
    """What the quantized layers share. Never constructed: `swap` gives a layer its class."""

    weight: Tensor
    weight_quantizer: Quantizer
    input_quantizer: Quantizer | None
    offset: Tensor | None
    columns_first = False  # GPT-2's Conv1D stores [in, out]

    def rows(self) -> Tensor:
        """The latent weight with output rows first: [out, in, ...]."""
        return self.weight.T if self.columns_first else self.weight

    def dequantized(self) -> Tensor:
        """The weight that the forward pass uses, rows first and flat: [out, in * ...]; SAM's offset included."""
        # Columns first would stay so, and be multiplied by another kernel than what is loaded.
        weight = self.weight_quantizer(self.rows().flatten(1)).contiguous()
        return weight if self.offset is None else weight + whole(self.offset)

    def inputs(self, x: Tensor) -> Tensor:
        return x if self.input_quantizer is None else self.input_quantizer(x)

    def exact(self, x: Tensor) -> torch.autocast:
        """Full precision while SAM's step is in the offset: bfloat16 would round it away (about 5e-6 against 2e-4).

        The offset that only collects a gradient wants one; the step does not.
        """
        moved = self.offset is not None and not self.offset.requires_grad
        return torch.autocast(x.device.type, enabled=not moved and torch.is_autocast_enabled(x.device.type))


@final
class QuantLinear(QuantLayer, nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        with self.exact(input):
            return F.linear(self.inputs(input), self.dequantized(), self.bias)


@final
class QuantConv1D(QuantLayer, Conv1D):
    columns_first = True

    def forward(self, x: Tensor) -> Tensor:
        with self.exact(x):
            return F.linear(self.inputs(x), self.dequantized(), self.bias)


@final
class QuantConv2d(QuantLayer, nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        with self.exact(input):
            return self._conv_forward(self.inputs(input), self.dequantized().view_as(self.weight), self.bias)


@final
class QuantExpertLinear(QuantLayer, ExpertLinear):
    def rows(self) -> Tensor:
        return self.weight.flatten(0, 1)

    def forward(self, rows: Tensor, counts: list[int]) -> Tensor:
        with self.exact(rows):
            return by_expert(self.inputs(rows), self.dequantized().view_as(self.weight), counts)


class QuantActivation(nn.Module):
    """An activation that rounds what it puts out. Never constructed: `swap_activation` gives a module its class.

    A module that is called at several places of the network has one range for all of them.
    """

    output_quantizer: Quantizer

    def forward(self, input: Tensor) -> Tensor:
        return self.output_quantizer(super().forward(input))


@final
class QuantReLU(QuantActivation, nn.ReLU):
    """Straight through: where the grid saturates, above its range, no gradient passes."""


@final
class QuantReLU6(QuantActivation, nn.ReLU6):
    """As QuantReLU."""


@final
class QuantEmbedding(QuantLayer, nn.Embedding):
    """Rounds only the rows that are looked up."""

    def forward(self, input: Tensor) -> Tensor:
        rows = F.embedding(input, self.weight, self.padding_idx)
        rows = self.weight_quantizer.rows(rows, input)
        return rows if self.offset is None else rows + F.embedding(input, whole(self.offset), self.padding_idx)


SWAPS: dict[type, type[QuantLayer]] = {
    nn.Linear: QuantLinear,
    Conv1D: QuantConv1D,
    nn.Conv2d: QuantConv2d,
    nn.Embedding: QuantEmbedding,
    ExpertLinear: QuantExpertLinear,
}
ACTIVATIONS: dict[type, type[QuantActivation]] = {nn.ReLU: QuantReLU, nn.ReLU6: QuantReLU6}


def weight_rows(layer: nn.Module) -> Tensor:
    """The weight of a float layer, output rows first and flat: [out, in * ...]."""
    assert isinstance(layer.weight, Tensor)
    if kind_of(layer) is ExpertLinear:
        return layer.weight.flatten(0, 1)
    return (layer.weight.T if kind_of(layer) is Conv1D else layer.weight).flatten(1)


def weight_quantizer(layer: nn.Module, config: QuantConfig, searched: bool = True) -> Quantizer:
    """What rounds the weight of a float layer. Raises ValueError if a group size does not fit. Without `searched`, kept
    ranges are those of min-max: for who searches them anew before they are read."""
    table = kind_of(layer) is nn.Embedding
    grid = config.embedding if table else config.weight
    assert grid is not None
    ranges, view = RANGES["searched" if table else config.ranges], groups(weight_rows(layer), grid)
    return Quantizer(grid, ranges(view, grid) if searched else ranges(view, grid, factors=(1.0,)))


def unfit(layer: nn.Module, grid: Grid) -> str:
    """Why the inputs of a float layer cannot be on this grid, whatever its width; nothing if they can."""
    if kind_of(layer) is not nn.Conv2d or grid.per == "tensor":
        return ""
    shared = "token" if grid.per == "token" else f"group of {grid.per}"
    return (
        f"this convolution's input per {shared} would have scales for each row of pixels; give it one static range "
        "(Grid(per='tensor')), as the presets zsaq.vision.presets.brecq('w4a8', model) and uniform do, and "
        "zsaq.quantize by itself for a classifier of images (...ForImageClassification); of an encoder without a "
        "head quantize weights alone, 'w4a16'"
    )


def input_quantizer(layer: nn.Module, config: QuantConfig) -> Quantizer | None:
    """What rounds the input of a float layer; None for a table. Raises ValueError for a grid that does not fit it."""
    grid = None if kind_of(layer) is nn.Embedding else config.input
    if grid is None:
        return None
    if why := unfit(layer, grid):
        raise ValueError(why)
    if isinstance(grid.per, int):
        groups(torch.empty(1, weight_rows(layer).shape[1], device="meta"), grid)
    return Quantizer(grid, input_range(grid))


def swap(layer: nn.Module, config: QuantConfig, searched: bool = True) -> None:
    """Give a layer its quantized class and quantizers, in place. Raises ValueError if a grid does not fit."""
    inputs, weights = input_quantizer(layer, config), weight_quantizer(layer, config, searched)
    kind = kind_of(layer)
    assert kind is not None
    layer.__class__ = form_of(SWAPS[kind], type(layer))
    assert isinstance(layer, QuantLayer)
    layer.weight_quantizer, layer.input_quantizer, layer.offset = weights, inputs, None


def swap_activation(module: nn.Module, grid: Grid) -> None:
    """Give a ReLU its quantized class and quantizer, in place."""
    module.__class__ = ACTIVATIONS[type(module)]
    assert isinstance(module, QuantActivation)
    module.output_quantizer = Quantizer(grid, input_range(grid))


def quant_layers(model: nn.Module) -> Iterator[tuple[str, QuantLayer]]:
    """Names and quantized layers, each once."""
    for name, module in model.named_modules():
        if isinstance(module, QuantLayer):
            yield name, module


def quant_activations(model: nn.Module) -> Iterator[tuple[str, QuantActivation]]:
    """Names and quantized activations, each once; the same classes stand in students and in loaded models."""
    for name, module in model.named_modules():
        if isinstance(module, QuantActivation):
            yield name, module


def parameter_groups(student: nn.Module, lr: float) -> list[dict[str, Any]]:
    """Optimizer groups of what is trained: the learned scale of a layer moves relatively as fast as its weights do.

    Adam moves every entry by about `lr`, whatever its size; a scale is smaller than its weights' root mean square by
    about the number of levels, so it gets `lr * mean(scale) / rms(weight)`.
    """
    scales: dict[int, dict[str, Any]] = {}
    for _, layer in quant_layers(student):
        scale = layer.weight_quantizer.ranges.trained()
        if scale is not None and id(scale) not in scales:
            size = whole(layer.weight.detach()).float().square().mean().sqrt().clamp_min(TINY)
            share = whole(scale.detach()).abs().mean() / size
            scales[id(scale)] = {"params": [scale], "lr": lr * min(1.0, float(share)), "weight_decay": 0.0}
    rest = [p for p in student.parameters() if p.requires_grad and id(p) not in scales]
    return [{"params": rest, "lr": lr}, *(g for g in scales.values() if g["params"][0].requires_grad)]
