"""What compares two tensors position by position, a few positions at a time: a vocabulary's worth of floats at each is
too much to keep several copies of."""

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

CHUNK: Final = 2**22  # entries at a time: 16 MiB in float32

Compared = Callable[[Tensor, Tensor], Tensor]  # [N, C], [N, C] -> [N], each of its own row alone


def by_position(compared: Compared, p: Tensor, q: Tensor) -> Tensor:
    """`compared` of p and q [..., C] -> [...]; bit for bit as at once, but nothing is kept for the backward pass but p
    and q, and there is no gradient of its gradient."""
    if p.numel() <= CHUNK:
        return compared(p.flatten(0, -2), q.flatten(0, -2)).view(p.shape[:-1])
    value: Any = ByPosition.apply(compared, p.flatten(0, -2), q.flatten(0, -2))
    return value.view(p.shape[:-1])


class ByPosition(torch.autograd.Function):
    @staticmethod
    def forward(ctx, compared: Compared, p: Tensor, q: Tensor) -> Tensor:
        ctx.compared = compared
        ctx.save_for_backward(p, q)
        rows = max(1, CHUNK // p.shape[1])
        return torch.cat([compared(a, b) for a, b in zip(p.split(rows), q.split(rows), strict=True)])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        both, wanted = ctx.saved_tensors, ctx.needs_input_grad[1:]
        grads = [torch.empty_like(x) if want else None for x, want in zip(both, wanted, strict=True)]
        rows = max(1, CHUNK // both[0].shape[1])
        for start in range(0, len(grad), rows):
            at = slice(start, start + rows)
            parts = [x[at].detach().requires_grad_(want) for x, want in zip(both, wanted, strict=True)]
            with torch.enable_grad():
                value = ctx.compared(*parts)
            moved = [part for part, want in zip(parts, wanted, strict=True) if want]
            slopes = iter(torch.autograd.grad(value, moved, grad[at]))
            for whole in grads:
                if whole is not None:
                    whole[at] = next(slopes)
        return None, *grads
