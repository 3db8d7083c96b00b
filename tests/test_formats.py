"""Number formats of weights and of their scales: what they round to, and that what is saved is what was trained."""

from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import nearest
from zsaq import Grid, MSEOptimal, QuantConfig, Quantizer
from zsaq.quant.codes import dequantize, groups, nearby, round_to_grid, values_of
from zsaq.quant.grid import CODEBOOKS, Per
from zsaq.quant.packed_model import packed_rows
from zsaq.quant.packing import unpack
from zsaq.quant.ranges import MinMax, search
from zsaq.quant.scales import FORMATS
from zsaq.quant.sizes import matrix_bytes

NF4 = [  # Dettmers et al. 2023, arXiv 2305.14314, appendix E
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip
E2M1 = [  # OCP Microscaling Formats 1.0, 5.3.3: sign, exponent of bias 1, one bit of mantissa
    0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0,
]  # fmt: skip
FP4, FP8 = Grid(4, levels="fp4"), Grid(8, levels="fp8")
SHARING: list[Per] = ["channel", "tensor", 8]
GRIDS = [
    Grid(bits, symmetric, per, levels, scales)
    for (bits, symmetric, levels), per, scales in product(
        [(4, True, "integer"), (3, False, "integer"), (2, True, "half"), (2, True, "ternary"), (4, True, "nf4"),
         (4, True, "fp4"), (8, True, "fp8")],
        SHARING,
        FORMATS,
    )
    if symmetric or scales in ("float32", "float16")
]  # fmt: skip


def on_grid(x: torch.Tensor, grid: Grid) -> torch.Tensor:
    one = torch.ones(1, 1)
    return dequantize(round_to_grid(x[None], one, grid.zero, grid), one, grid.zero, grid)[0]


def test_the_tables_are_those_that_were_published() -> None:
    assert CODEBOOKS["nf4"] == pytest.approx(NF4, abs=2e-7) and CODEBOOKS["nf4"].index(0.0) == 7
    assert CODEBOOKS["fp4"] == tuple(sorted({sign * value for sign in (1, -1) for value in E2M1}))
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    assert list(CODEBOOKS["fp8"]) == every[every.isfinite()].unique().tolist() and len(CODEBOOKS["fp8"]) == 253
    assert [Grid(bits, levels=name).high for bits, name in ((4, "nf4"), (4, "fp4"), (8, "fp8"))] == [15, 14, 252]


def test_fp8_rounds_as_torch_casts_with_ties_to_even() -> None:
    book = torch.tensor(CODEBOOKS["fp8"])
    ties = (book[1:] + book[:-1]) / 2
    beside = torch.cat([torch.nextafter(ties, side * torch.full_like(ties, torch.inf)) for side in (1, -1)])
    x = torch.cat([book, ties, beside, 100 * torch.randn(4000), 0.01 * torch.randn(4000), torch.tensor([464.0])])
    x = x.clamp(-464, 464)
    assert torch.equal(on_grid(x, FP8), x.to(torch.float8_e4m3fn).float())


def test_fp4_rounds_to_nearest_with_ties_to_even() -> None:
    ties = {0.25: 0.0, 0.75: 1.0, 1.25: 1.0, 1.75: 2.0, 2.5: 2.0, 3.5: 4.0, 5.0: 4.0, 9.0: 6.0}
    x = torch.tensor([*ties, *(-tie for tie in ties)])
    assert on_grid(x, FP4).tolist() == [*ties.values(), *(-value for value in ties.values())]
    x = 4 * torch.randn(500)
    assert on_grid(x, FP4).tolist() == [nearest(v, list(CODEBOOKS["fp4"])) for v in x.tolist()]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_what_is_packed_is_what_the_quantizer_gives(grid: Grid) -> None:
    torch.manual_seed(1)
    x = torch.randn(6, 16) * torch.logspace(-3, 2, 6)[:, None]
    x[1] = 0
    quantizer = Quantizer(grid, MSEOptimal(groups(x, grid), grid))
    stored, values = packed_rows(x, quantizer), quantizer(x)
    scale = grid.scaling.decode(stored["scale"], stored.get("unit"))
    codes = unpack(stored["codes"], grid.bits, (6, 16)).short() + grid.low
    zero = grid.zero if grid.symmetric else stored["zero"]
    assert torch.equal(dequantize(codes, scale, zero, grid), values)
    assert stored["scale"].dtype == grid.scaling.dtype and scale.isfinite().all() and (scale > 0).all()
    assert sum(part.nbytes for part in stored.values()) == matrix_bytes(6, 16, grid)
    again = round_to_grid(groups(values, grid), scale, zero, grid).reshape(x.shape)  # rounding is idempotent
    assert torch.equal(again.to(codes.dtype), codes)
    form, unit = grid.scaling, stored.get("unit")
    assert torch.equal(form.held(scale, unit), scale) and torch.equal(form.encode(scale, unit), stored["scale"])


@pytest.mark.parametrize("scales", FORMATS)
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-6, 1.0, 1e6, 1e30])
def test_scales_are_never_empty_nor_infinite(scales: str, size: float) -> None:
    grid = Grid(4, per=8, scales=scales)
    x = size * torch.randn(4, 2, 8)
    x[0], x[1, 0] = 0, 1e-3 * x[1, 0]
    for scale in (search(x, grid)[0], MinMax()(x, grid)[0]):
        assert scale.isfinite().all() and (scale > 0).all()
        assert (Quantizer(grid, MSEOptimal(x, grid))(x.flatten(1)).isfinite()).all()


def test_searched_powers_of_two_are_the_best_of_all() -> None:
    grid = Grid(4, per=32, levels="fp4", scales="e8m0")
    x = torch.randn(40, 32) * torch.logspace(-3, 3, 40)[:, None]
    scale, _ = search(x, grid)
    assert torch.equal(torch.frexp(scale).mantissa, torch.full_like(scale, 0.5))

    def error(each: torch.Tensor) -> torch.Tensor:
        return (values_of(round_to_grid(x, each, 0.0, grid), 0.0, grid) * each - x).square().sum(1)

    every = torch.stack([error(scale * 2.0**power) for power in range(-4, 5)])
    assert torch.equal(every.argmin(0), torch.full((40,), 4))
    ocp = 2.0 ** (x.abs().amax(1, keepdim=True).log2().floor() - 2)
    assert torch.equal(MinMax()(x, grid)[0], ocp)


def test_the_largest_e4m3_scale_is_448_units() -> None:
    grid = Grid(4, per=16, levels="fp4", scales="e4m3")
    x = torch.randn(8, 4, 16)
    ranges = MSEOptimal(x, grid)
    assert float(ranges.unit) * 448 == pytest.approx(float(x.abs().max()) / 6)
    assert float((ranges.scale / ranges.unit).max()) <= 448


@pytest.mark.parametrize("scales", ["float16", "e8m0", "e4m3"])
def test_learned_scales_are_rounded_in_every_step_and_learn(scales: str) -> None:
    grid, x = Grid(4, per=8, scales=scales), torch.randn(4, 16)
    ranges = MSEOptimal(groups(x, grid), grid, learned=True)
    with torch.no_grad():
        ranges.scale.mul_(1 + 0.3 * torch.rand_like(ranges.scale))
    scale, _ = ranges(groups(x, grid), grid)
    assert torch.equal(scale, grid.scaling.held(ranges.scale.detach(), ranges._buffers.get("unit")))
    assert not torch.equal(scale, ranges.scale)
    Quantizer(grid, ranges)(x).square().sum().backward()
    assert ranges.scale.grad is not None and (ranges.scale.grad != 0).any()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("w4a16g64-mxfp4", "mxfp4 has blocks of 32; leave g64 out"),
        ("w4a8b32-nvfp4", "nvfp4 has blocks of 16; leave b32 out"),
        ("w4a16-mxfp4-s16", "mxfp4 has scales of its own, powers of two; leave -s16 out"),
        ("w3a16-nf4", "only 4-bit weights have nf4 levels"),
        ("w4a16-fp8", "only 8-bit weights have fp8 levels"),
        ("w16a8-nf4", "only 4-bit weights have nf4 levels"),
        ("w4a16-fp16", "is no quantization"),
    ],
)
def test_texts_that_cannot_be_say_why(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        QuantConfig.parse(text)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Grid(4, scales="bf16"), "scales is 'bf16'; give one of"),
        (lambda: Grid(4, scales=["float16"]), "scales is"),  # type: ignore[arg-type]
        (lambda: Grid(4, symmetric=False, scales="e8m0"), "for symmetric grids"),
        (lambda: QuantConfig(Grid(4), Grid(8, per="token", scales="float16")), r"input\.scales is 'float16'"),
        (lambda: QuantConfig(activation=Grid(8, per="tensor", scales="e8m0")), r"activation\.scales"),
        (lambda: QuantConfig(Grid(4, scales="e4m3"), ranges="minmax"), "give ranges='searched'"),
    ],
)
def test_formats_that_cannot_be_say_why(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(GRIDS), st.floats(-30, 30), st.integers(0, 2**20))
def test_what_is_moved_near_a_level_stays_on_it(grid: Grid, size: float, seed: int) -> None:
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(seed))
    scale, zero = search(x, Grid(grid.bits, grid.symmetric, "channel", grid.levels))
    codes = round_to_grid(x, scale, zero, grid)
    moved = nearby(x + size, dequantize(codes, scale, zero, Grid(grid.bits, grid.symmetric, "channel", grid.levels)),
                   scale.expand_as(x), grid, 0.49)  # fmt: skip
    assert torch.equal(round_to_grid(moved, scale, zero, grid), codes)
