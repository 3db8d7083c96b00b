"""compressed-tensors, written plainly from its documented layout and rule, apart from the package of that name."""

import torch
from torch import Tensor, nn


def pack_words(codes: list[int], bits: int) -> list[int]:
    """Signed codes as signed 32-bit words: bit j of code + 2^(bits - 1), of code i, is bit i * bits + j of the row."""
    stream = sum((code + 2 ** (bits - 1)) << (bits * i) for i, code in enumerate(codes))
    count = -(-len(codes) * bits // 32)
    words = [stream >> (32 * i) & (2**32 - 1) for i in range(count)]
    return [word - 2**32 if word >= 2**31 else word for word in words]


class StockInputs(nn.Module):
    """Dynamic symmetric inputs in groups along the last dimension: scale absmax / ((2^bits - 1) / 2), clamp, round."""

    def __init__(self, bits: int, size: int | None = None) -> None:
        super().__init__()
        self.bits, self.size = bits, size

    def forward(self, x: Tensor) -> Tensor:
        view = x.unflatten(-1, (-1, self.size or x.shape[-1]))
        scale = view.abs().amax(-1, keepdim=True) / ((2**self.bits - 1) / 2)
        scale = torch.where(scale == 0, torch.finfo(x.dtype).eps, scale)
        codes = (view / scale).clamp(-(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1).round()
        return (codes * scale).reshape(x.shape)
