"""Inputs rounded in a traced graph, as `zsaq.quantizer` rounds them: in static ranges, or with a scale for each token.

Codes are uint8 there, those of symmetric grids plus 128.
"""

from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.onnx.ops import symbolic

from zsaq.quant.config import Grid
from zsaq.quant.quantizer import Quantizer
from zsaq.quant.ranges import LEAST

MIDDLE: Final = 128  # the code of zero on a symmetric grid


def emit(kind: str, inputs: Any, dtype: torch.dtype, shape: Any, **attributes: Any) -> Tensor:
    """One operator in the graph."""
    return symbolic(kind, inputs, attributes, dtype=dtype, shape=shape)


def check_inputs(grid: Grid) -> None:
    """Raises ValueError for inputs that no kernel rounds as the student does."""
    if not grid.zero.is_integer():
        raise ValueError("inputs at half-integer levels have no kernel; give QuantConfig.input an integer Grid")
    if isinstance(grid.per, int) and (grid.bits != 8 or not grid.symmetric):
        raise ValueError(f"inputs in blocks have 8 symmetric bits in ONNX Runtime; these have {grid}")
    if grid.per == "token" and not grid.symmetric:
        raise ValueError("asymmetric inputs per token have no kernel; make them symmetric, or static (per='tensor')")


def shifts(quantizer: Quantizer) -> bool:
    """Whether a static range has a zero of its own, which the student adds before it rounds."""
    return not quantizer.grid.symmetric and int(quantizer.ranges(torch.empty(0), quantizer.grid)[1]) != 0


@final
class StaticRounding(nn.Module):
    """A static quantizer. `scale`, `zero` []: what codes stand for is (code - zero) * scale.

    `least` and `most` bound the values before rounding, which is monotonic, so the bounds are taken on codes.
    """

    scale: Tensor
    zero: Tensor
    none: Tensor
    one: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, quantizer: Quantizer, least: float = -torch.inf, most: float = torch.inf) -> None:
        super().__init__()
        grid = quantizer.grid
        check_inputs(grid)
        assert quantizer.ranges.static
        scale, zero = quantizer.ranges(torch.empty(0), grid)
        scale = scale.flatten()[0].clone()
        start = MIDDLE if grid.symmetric else 0
        middle = 0 if grid.symmetric else int(zero)
        ends = (torch.tensor(bound) / scale + middle for bound in (least, most))
        low, high = (int(end.round().clamp(grid.low, grid.high)) + start for end in ends)
        self.whole, self.shifted = (low, high) == (0, 255), shifts(quantizer)
        for name, value in {"none": 0, "low": low, "high": high, "zero": start + middle}.items():
            self.register_buffer(name, torch.tensor(value, dtype=torch.uint8), persistent=False)
        for name, value in {"scale": scale, "one": torch.ones(())}.items():
            self.register_buffer(name, value, persistent=False)

    def rounded(self, x: Tensor) -> Tensor:
        """Codes in x's shape."""
        # The student adds its zero before it rounds; where it has one, so does the graph.
        operands = (
            (x / self.scale + self.zero.float(), self.one, self.none) if self.shifted else (x, self.scale, self.zero)
        )
        codes = emit("QuantizeLinear", operands, torch.uint8, x.shape)
        return codes if self.whole else emit("Clip", (codes, self.low, self.high), torch.uint8, x.shape)

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor, None]:
        """Codes, and their scale, which is the same everywhere."""
        return self.rounded(x), self.scale, None

    def forward(self, x: Tensor) -> Tensor:
        """What the codes stand for."""
        return emit("DequantizeLinear", (self.rounded(x), self.scale, self.zero), torch.float32, x.shape)


@final
class TokenRounding(nn.Module):
    """A symmetric quantizer that finds a scale for each token, [..., 1], of at least `least`. `zero`: the code of zero,
    `one`: 1."""

    zero: Tensor
    one: Tensor
    least: Tensor

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.grid = quantizer.grid
        self.register_buffer("zero", torch.tensor(MIDDLE, dtype=torch.uint8), persistent=False)
        self.register_buffer("one", torch.ones(()), persistent=False)
        self.register_buffer("least", torch.tensor(LEAST), persistent=False)

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, 1, and each token's scale: divide by the scale, round half to even, clamp."""
        grid = self.grid
        scale = x.abs().amax(-1, keepdim=True) / grid.amplitude
        scale = emit("Clip", (scale, self.least), x.dtype, scale.shape)  # torch's own casts the bound in every pass
        v = x / scale
        v = v if grid.amplitude <= grid.high else v.clamp(grid.low, grid.high)
        return emit("QuantizeLinear", (v, self.one, self.zero), torch.uint8, x.shape), self.one, scale
