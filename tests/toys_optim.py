"""Toys for the optimizers: a tiny student, the contract's closure, and a watch on what each forward pass uses."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from zsaq import Grid, MinMax, QuantConfig, Quantizer, quantize_model
from zsaq.quant.layers import QuantLayer, quant_layers
from zsaq.train.inundation import WeightCodes

Batch = tuple[Tensor, Tensor]
W2 = QuantConfig.parse("w2a16")
SHAPES = [(16, 3, 3, 3), (24, 16, 3, 3), (8, 27), (10, 40), (24, 144)]


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(nn.functional.gelu(self.norm(self.first(x))))


def make_student(config: QuantConfig = W2) -> nn.Module:
    torch.manual_seed(1)
    return quantize_model(MLP(), config)


def make_batch(n: int = 6) -> Batch:
    torch.manual_seed(2)
    return torch.randn(n, 8), torch.randn(n, 4)


def adamw(student: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(student.parameters(), lr=0.01, weight_decay=0.1)


def closure_of(student: nn.Module, *batches: Batch, scale: float = 1.0, see: Callable[[], object] = lambda: None):
    """The contract's closure: micro-batches of one size; `see` is called between forward and backward."""

    def closure() -> Tensor:
        student.zero_grad()
        total = torch.zeros(())
        for x, y in batches:
            loss = mse_loss(student(x), y) * (scale / len(batches))
            see()
            loss.backward()
            total += loss.detach()
        return total

    return closure


def params(student: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in student.named_parameters()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def layers(student: nn.Module) -> list[QuantLayer]:
    return [layer for _, layer in quant_layers(student)]


def watch(student: nn.Module) -> tuple[list[dict[str, Tensor]], Callable[[], None]]:
    """Records, at each look, the values that the forward pass uses: dequantized weights and float parameters."""
    looks: list[dict[str, Tensor]] = []

    def see() -> None:
        used = {f"{name}.weight": layer.dequantized().detach().clone() for name, layer in quant_layers(student)}
        looks.append(params(student) | used)

    return looks, see


def codes_of_shapes(grid: Grid, shapes=SHAPES) -> list[WeightCodes]:
    rng = torch.Generator().manual_seed(1)
    return [WeightCodes(nn.Parameter(0.1 * torch.randn(s, generator=rng)), Quantizer(grid, MinMax())) for s in shapes]


def gradients_of(held: list[WeightCodes], seed: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(c.weight.shape, generator=rng) * 10.0**-i for i, c in enumerate(held)]
