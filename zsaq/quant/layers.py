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

from zsaq.quant.config import Grid, QuantConfig
from zsaq.quant.quantizer import TINY, EMAMinMax, MinMax, MSEOptimal, Quantizer, Range, groups


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
        weight = self.weight_quantizer(self.rows().flatten(1))
        return weight if self.offset is None else weight + self.offset

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
        return rows if self.offset is None else rows + F.embedding(input, self.offset, self.padding_idx)


SWAPS: dict[type, type[QuantLayer]] = {
    nn.Linear: QuantLinear,
    Conv1D: QuantConv1D,
    nn.Conv2d: QuantConv2d,
    nn.Embedding: QuantEmbedding,
}
ACTIVATIONS: dict[type, type[QuantActivation]] = {nn.ReLU: QuantReLU, nn.ReLU6: QuantReLU6}


def swap(layer: nn.Module, config: QuantConfig) -> None:
    """Give a layer its quantized class and quantizers, in place. Raises ValueError if a group size does not fit."""
    kind = SWAPS[type(layer)]
    table = kind is QuantEmbedding
    grid = config.embedding if table else config.weight
    assert grid is not None and isinstance(layer.weight, Tensor)
    rows = (layer.weight.T if kind is QuantConv1D else layer.weight).flatten(1)
    view = groups(rows, grid)
    searched = table or config.ranges != "minmax"
    ranges = MSEOptimal(view, grid, learned=config.ranges == "learned" and not table) if searched else MinMax()
    layer.__class__ = kind
    assert isinstance(layer, QuantLayer)
    layer.weight_quantizer = Quantizer(grid, ranges)
    layer.input_quantizer = (
        None if table or config.input is None else Quantizer(config.input, input_range(config.input))
    )
    layer.offset = None


def swap_activation(module: nn.Module, grid: Grid) -> None:
    """Give a ReLU its quantized class and quantizer, in place."""
    module.__class__ = ACTIVATIONS[type(module)]
    assert isinstance(module, QuantActivation)
    module.output_quantizer = Quantizer(grid, input_range(grid))


def check_static(quantizer: Quantizer | None, side: str) -> None:
    """Raises ValueError for a static range of a layer's `side` that nothing or nonsense has filled."""
    if quantizer is None or not isinstance(ranges := quantizer.ranges, EMAMinMax):
        return
    if int(ranges.updates) < 1:
        raise ValueError(f"the static {side} range has seen nothing: run zsaq.calibrate before saving")
    scale, _ = ranges(ranges.lo, quantizer.grid)
    lo, hi = float(ranges.lo), float(ranges.hi)
    if not (lo <= hi and (lo < 0 or hi > 0) and scale.isfinite().all()):
        raise ValueError(
            f"the static {side} range goes from {lo} to {hi} (before its correction); it must be finite, from low to "
            "high and not empty: run zsaq.calibrate on other batches before saving"
        )


def input_range(grid: Grid) -> Range:
    """Dynamic for tokens and groups; static for whole tensors, which `zsaq.calibrate` must fill."""
    return EMAMinMax() if grid.per == "tensor" else MinMax()


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
        scale = layer.weight_quantizer.ranges
        if isinstance(scale, MSEOptimal) and isinstance(scale.scale, nn.Parameter) and id(scale.scale) not in scales:
            share = scale.scale.detach().mean() / layer.weight.detach().square().mean().sqrt().clamp_min(TINY)
            scales[id(scale.scale)] = {"params": [scale.scale], "lr": lr * min(1.0, float(share)), "weight_decay": 0.0}
    rest = [p for p in student.parameters() if p.requires_grad and id(p) not in scales]
    return [{"params": rest, "lr": lr}, *(g for g in scales.values() if g["params"][0].requires_grad)]
