"""Codes to bytes and back, against bits counted one by one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reference_packing import pack_row, unpack_row
from zsaq.quant.config import Grid
from zsaq.quant.packing import pack, unpack, width


@st.composite
def codes_and_bits(draw) -> tuple[torch.Tensor, int]:
    bits = draw(st.integers(2, 8))
    rows, count = draw(st.integers(0, 4)), draw(st.integers(0, 40))
    flat = draw(st.lists(st.integers(0, 2**bits - 1), min_size=rows * count, max_size=rows * count))
    kind = draw(st.sampled_from([torch.uint8, torch.int16, torch.int64]))
    return torch.tensor(flat, dtype=kind).reshape(rows, count), bits


@given(codes_and_bits())
def test_every_bit_stands_where_the_plain_reference_puts_it(case) -> None:
    codes, bits = case
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8 and packed.is_contiguous()
    assert packed.shape == (len(codes), width(codes.shape[1], bits))
    assert packed.tolist() == [pack_row(row, bits) for row in codes.tolist()]
    back = unpack(packed, bits, tuple(codes.shape))
    assert back.dtype == torch.uint8
    assert back.tolist() == codes.tolist() == [unpack_row(row, bits, codes.shape[1]) for row in packed.tolist()]


@given(st.integers(2, 8), st.booleans(), st.integers(1, 33))
def test_every_code_of_a_grid_comes_back(bits: int, symmetric: bool, count: int) -> None:
    grid = Grid(bits, symmetric=symmetric)
    codes = torch.arange(grid.low, grid.high + 1).repeat(3, count)
    back = unpack(pack(codes - grid.low, bits), bits, tuple(codes.shape)).long() + grid.low
    assert torch.equal(back, codes)


def test_low_bits_come_first_and_rows_end_at_bytes() -> None:
    assert pack(torch.tensor([1, 2, 3, 0, 3]), 2).tolist() == [0b00111001, 0b00000011]
    assert pack(torch.tensor([[7, 0, 5]]), 3).tolist() == [[0b01000111, 0b00000001]]
    assert pack(torch.full((1000, 16), 3), 2).numel() == 4000
    assert pack(torch.full((1000, 16), 7), 3).numel() == 6000
    assert pack(torch.full((2, 3, 8), 255), 8).tolist() == torch.full((2, 3, 8), 255).tolist()


def test_shapes_alone_are_enough_on_the_meta_device() -> None:
    packed = torch.empty(5, width(13, 3), dtype=torch.uint8, device="meta")
    assert unpack(packed, 3, (5, 13)).shape == (5, 13)


@pytest.mark.parametrize(
    ("codes", "bits", "message"),
    [
        (torch.tensor([0, 4]), 2, "0 to 4; 2 bits hold 0 to 3"),
        (torch.tensor([-1, 1]), 2, "-1 to 1"),
        (torch.tensor([0, 256]), 8, "8 bits hold 0 to 255"),
        (torch.tensor([0.0]), 2, "float32"),
        (torch.tensor(1), 2, "dimension"),
        (torch.tensor([0]), 1, "2 to 8"),
        (torch.tensor([0]), 9, "2 to 8"),
    ],
)
def test_what_does_not_fit_is_refused(codes: torch.Tensor, bits: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack(codes, bits)


def test_bytes_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"3-bit codes \[2, 9\] are uint8 \[2, 4\]"):
        unpack(torch.zeros(2, 3, dtype=torch.uint8), 3, (2, 9))
    with pytest.raises(ValueError, match="int16"):
        unpack(torch.zeros(2, 4, dtype=torch.int16), 3, (2, 9))
    with pytest.raises(ValueError, match="2 to 8"):
        unpack(torch.zeros(2, 4, dtype=torch.uint8), 1, (2, 9))
