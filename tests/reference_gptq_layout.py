"""The checkpoint layout of GPTQ, packed plainly with Python's integers, apart from the package."""


def stream(values: list[int], bits: int) -> list[int]:
    """Values from 0 on as signed 32-bit words: bit j of value i is bit i * bits + j of the whole."""
    whole = sum(value << (bits * i) for i, value in enumerate(values))
    assert len(values) * bits % 32 == 0
    words = [whole >> (32 * i) & (2**32 - 1) for i in range(len(values) * bits // 32)]
    return [word - 2**32 if word >= 2**31 else word for word in words]
