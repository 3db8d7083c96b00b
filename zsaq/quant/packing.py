"""Integer codes to bytes and back: a stream of `bits` bits per code along the last dimension, low bits first.

Each row ends at a byte boundary; what pads it is zero. Eight codes fill `bits` bytes whole, so both ways go through one
64-bit word for every eight codes.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def width(codes: int, bits: int) -> int:
    """Bytes of a row of that many codes."""
    return -(-codes * bits // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Bytes [..., ceil(n * bits / 8)], uint8, of integer codes [..., n] in 0 .. 2 ** bits - 1.

    Signed codes are counted from their grid's lowest: `pack(codes.short() - grid.low, grid.bits)`. Raises ValueError
    for other codes and for bits that are not 2 to 8.
    """
    _check(bits)
    if codes.is_floating_point() or not codes.ndim:
        raise ValueError(f"codes are {codes.dtype} {list(codes.shape)}; give integers with at least one dimension")
    if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= 2**bits):
        raise ValueError(
            f"codes reach from {int(codes.min())} to {int(codes.max())}; {bits} bits hold 0 to {2**bits - 1}"
        )
    count = codes.shape[-1]
    eights = F.pad(codes, (0, -count % 8)).unflatten(-1, (-1, 8))
    word = torch.zeros(eights.shape[:-1], dtype=torch.int64, device=codes.device)
    for i in range(8):
        word |= eights[..., i].long() << (bits * i)
    # The arithmetic shift smears the sign bit of a full word; the mask wipes it off.
    packed = torch.stack([(word >> (8 * i) & 255).to(torch.uint8) for i in range(bits)], -1)
    return packed.flatten(-2)[..., : width(count, bits)].contiguous()


def unpack(packed: Tensor, bits: int, shape: tuple[int, ...]) -> Tensor:
    """The codes of `shape`, uint8 in 0 .. 2 ** bits - 1: the inverse of `pack`.

    Raises ValueError for bytes that are not uint8 of the size that codes of this shape fill.
    """
    _check(bits)
    expected = [*shape[:-1], width(shape[-1], bits)]
    if packed.dtype != torch.uint8 or list(packed.shape) != expected:
        raise ValueError(
            f"packed is {packed.dtype} {list(packed.shape)}; {bits}-bit codes {list(shape)} are uint8 {expected}"
        )
    rows = F.pad(packed, (0, -packed.shape[-1] % bits)).unflatten(-1, (-1, bits))
    word = torch.zeros(rows.shape[:-1], dtype=torch.int64, device=packed.device)
    for i in range(bits):
        word |= rows[..., i].long() << (8 * i)
    codes = torch.stack([(word >> (bits * i) & (2**bits - 1)).to(torch.uint8) for i in range(8)], -1)
    return codes.flatten(-2)[..., : shape[-1]]


def _check(bits: int) -> None:
    if bits not in range(2, 9):
        raise ValueError(f"bits is {bits!r}; give an integer from 2 to 8")
