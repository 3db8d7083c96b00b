"""SAM in plain loops: a float twin holds the dequantized weights, so its gradients are the gradients there."""

import torch
from torch import Tensor, nn

from zsaq.quant.config import Grid


def on_grid(w: Tensor, scale: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Symmetric grids, a scale per row: the dequantized weight, and where the straight-through gradient passes."""
    codes = (w / scale + grid.zero).round()
    passes = (codes >= grid.low) & (codes <= grid.high)
    return (codes.clamp(grid.low, grid.high) - grid.zero) * scale, passes


def gradients(twin: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    twin.zero_grad()
    nn.functional.mse_loss(twin(batch[0]), batch[1]).backward()
    return {name: p.grad.clone() for name, p in twin.named_parameters() if p.grad is not None}


def perturbation(grads: dict[str, Tensor], rho: float) -> dict[str, Tensor]:
    """eps by SAM's formula, one parameter after the other."""
    square = sum(float(g.square().sum()) for g in grads.values())
    return {name: rho * g / (square**0.5 + 1e-12) for name, g in grads.items()}


def sam_gradients(
    twin: nn.Module,
    latent: dict[str, Tensor],
    quantized: dict[str, tuple[Tensor, Grid]],
    batch: tuple[Tensor, Tensor],
    rho: float,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The gradients that the latent parameters get, and eps. `quantized`: parameter name -> (scale [out, 1], grid)."""
    passes = {}
    with torch.no_grad():
        for name, p in twin.named_parameters():
            p.copy_(latent[name])
            if name in quantized:
                value, passes[name] = on_grid(latent[name], *quantized[name])
                p.copy_(value)
    eps = perturbation(gradients(twin, batch), rho)
    with torch.no_grad():
        for name, p in twin.named_parameters():
            p.add_(eps[name])
    grads = gradients(twin, batch)
    for name, mask in passes.items():
        grads[name] = torch.where(mask, grads[name], 0.0)
    return grads, eps
