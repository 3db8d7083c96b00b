"""Packing one bit at a time, in plain Python."""


def pack_row(codes: list[int], bits: int) -> list[int]:
    stream = [code >> place & 1 for code in codes for place in range(bits)]
    stream += [0] * (-len(stream) % 8)
    return [sum(bit << place for place, bit in enumerate(stream[i : i + 8])) for i in range(0, len(stream), 8)]


def unpack_row(packed: list[int], bits: int, count: int) -> list[int]:
    stream = [byte >> place & 1 for byte in packed for place in range(8)]
    return [sum(bit << place for place, bit in enumerate(stream[i * bits : (i + 1) * bits])) for i in range(count)]
