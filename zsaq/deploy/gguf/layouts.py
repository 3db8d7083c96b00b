"""How ggml lays a block of integers out in bytes, a row of `LAYOUTS` for each of its types that holds ours exactly.

Each function takes q, uint8 [blocks, size], the integers counted from the type's lowest, and s, float16 [blocks, 1],
the scales; it answers uint8 [blocks, bytes]. A value is (q + low) * s, but for `q2_k`, see there. The layouts are those
of ggml's `block_q4_0` and its sisters; `gguf.dequantize` reads them back.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, final

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Halves = NDArray[np.float16]


def raw(scale: Halves) -> Bytes:
    """Two bytes of each scale, little-endian."""
    return scale.astype("<f2").view(np.uint8).reshape(len(scale), 2)


def nibbles(q: Bytes) -> Bytes:
    """The low four bits of 32 integers: the first sixteen below the others."""
    low = q & 15
    return (low[:, :16] | low[:, 16:] << 4).astype(np.uint8)


def pairs(q: Bytes) -> Bytes:
    """The low two bits of 256 integers: byte j of each half holds those at j, j + 32, j + 64 and j + 96 in it."""
    fields = (q & 3).reshape(-1, 2, 4, 32)
    return np.bitwise_or.reduce([fields[:, :, i] << 2 * i for i in range(4)]).astype(np.uint8).reshape(-1, 64)


def q4_0(q: Bytes, s: Halves) -> Bytes:
    return np.concatenate([raw(s), nibbles(q)], 1)


def q5_0(q: Bytes, s: Halves) -> Bytes:
    fifth = np.packbits(q >> 4, axis=1, bitorder="little")
    return np.concatenate([raw(s), fifth, nibbles(q)], 1)


def q8_0(q: Bytes, s: Halves) -> Bytes:
    return np.concatenate([raw(s), np.bitwise_xor(q, np.uint8(128))], 1)  # two's complement of q - 128


def tq2_0(q: Bytes, s: Halves) -> Bytes:
    return np.concatenate([pairs(q), raw(s)], 1)


def q2_k(q: Bytes, s: Halves) -> Bytes:
    """Values (q - 1.5) * 2 s as s * 2 * q - s * 3: the integers 2 and 3 are sub-scales of 4 bits, so that no bit of the
    scale's mantissa is asked for."""
    parts = np.full((len(q), 16), 2 | 3 << 4, np.uint8)
    return np.concatenate([parts, pairs(q), raw(s), raw(s)], 1)


def q3_k(q: Bytes, s: Halves) -> Bytes:
    """All sixteen sub-scales are 1, which is stored as 33 in 6 bits: their low fours first, then their high twos."""
    third = (q >> 2).reshape(-1, 8, 32)
    high = np.bitwise_or.reduce([third[:, i] << i for i in range(8)]).astype(np.uint8)
    parts = np.repeat(np.array([0x11, 0xAA], np.uint8), (8, 4))[None].repeat(len(q), 0)
    return np.concatenate([high, pairs(q), parts, raw(s)], 1)


def q6_k(q: Bytes, s: Halves) -> Bytes:
    """All sixteen sub-scales are 1, of 8 bits. In each half the low fours of element j and j + 64 share a byte."""
    halves = q.reshape(-1, 2, 128)
    low = ((halves[..., :64] & 15) | (halves[..., 64:] & 15) << 4).astype(np.uint8)
    fields = (halves >> 4).reshape(-1, 2, 4, 32)
    high = np.bitwise_or.reduce([fields[:, :, i] << 2 * i for i in range(4)]).astype(np.uint8)
    parts = np.ones((len(q), 16), np.uint8)
    return np.concatenate([low.reshape(len(q), 128), high.reshape(len(q), 64), parts, raw(s)], 1)


@final
@dataclass(frozen=True)
class Layout:
    """`name` of ggml's type, `size`: integers of a block, from `low` to `high`, which is also how many inputs ggml
    rounds together; `offset`: what a value has beside its integer, in units of the scale; `unit`: what is stored of a
    scale."""

    name: str
    size: int
    low: int
    high: int
    lay: Callable[[Bytes, Halves], Bytes]
    offset: float = 0.0
    unit: float = 1.0


LAYOUTS: Final = (  # by the bytes that they take
    Layout("TQ2_0", 256, -1, 1, tq2_0),
    Layout("Q2_K", 256, -2, 1, q2_k, offset=0.5, unit=0.5),
    Layout("Q3_K", 256, -4, 3, q3_k),
    Layout("Q4_0", 32, -8, 7, q4_0),
    Layout("Q5_0", 32, -16, 15, q5_0),
    Layout("Q6_K", 256, -32, 31, q6_k),
    Layout("Q8_0", 32, -128, 127, q8_0),
)
