import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from reference import levels, nearest, running, search_row, straight
from zsaq import EMAMinMax, Grid, MinMax, MSEOptimal, Quantizer
from zsaq.quant.codes import dequantize, groups, round_to_grid
from zsaq.quant.ranges import Static, from_bounds, search
from zsaq.train.trainer import calibrate

STATIC = Grid(8, symmetric=False, per="tensor")
KINDS = [(2, "half"), (2, "ternary"), (2, "integer"), (3, "integer"), (4, "integer"), (8, "integer")]


@pytest.mark.parametrize(("bits", "kind"), KINDS)
def test_rounds_to_the_nearest_level(bits: int, kind: str) -> None:
    grid = Grid(bits, levels=kind)  # type: ignore[arg-type]
    x = torch.randn(5, 12)
    quantizer = Quantizer(grid, MSEOptimal(groups(x, grid), grid))
    scale = quantizer.ranges(groups(x, grid), grid)[0]
    expected = [
        [nearest(float(v / s), levels(bits, kind)) * float(s) for v in row] for row, s in zip(x, scale, strict=True)
    ]
    assert torch.allclose(quantizer(x), torch.tensor(expected), atol=1e-6)


@pytest.mark.parametrize(("bits", "kind"), KINDS[:5])
def test_search_is_the_best_of_its_candidates(bits: int, kind: str) -> None:
    grid = Grid(bits, levels=kind)  # type: ignore[arg-type]
    x = torch.randn(3, 20)
    factors = torch.linspace(1.0, 0.15, 64).tolist()
    expected = [search_row(row, levels(bits, kind), factors, grid.amplitude) for row in x.tolist()]
    assert torch.allclose(search(x, grid)[0][:, 0], torch.tensor(expected), rtol=2e-2)


def test_searched_halves_lose_least_on_gaussian_rows() -> None:
    """0.345 for searched halves, 0.44 for ternary, 0.49 for halves at abs-max, 0.86 for {-1, 0, 1} at abs-max."""
    x = torch.randn(64, 768)

    def loss(grid: Grid, searched: bool) -> float:
        ranges = MSEOptimal(x, grid) if searched else MinMax()
        return float((Quantizer(grid, ranges)(x) - x).norm() / x.norm())

    half, ternary = Grid(2, levels="half"), Grid(2, levels="ternary")
    assert loss(half, True) == pytest.approx(0.345, abs=0.01)
    assert loss(ternary, True) == pytest.approx(0.44, abs=0.015)
    assert loss(half, False) > 0.45
    assert loss(ternary, False) > 0.8


@settings(deadline=None, max_examples=60)
@given(
    bits=st.integers(2, 8), symmetric=st.booleans(), per=st.sampled_from(["channel", "tensor", "token", 4]),
    shift=st.floats(-3, 3), seed=st.integers(0, 99),
)  # fmt: skip
def test_codes_stay_on_the_grid_and_zero_is_zero(bits, symmetric, per, shift, seed) -> None:
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(seed)) + shift
    x[0, 0] = 0.0
    quantizer = Quantizer(Grid(bits, symmetric, per), MinMax())
    codes, scale, zero = quantizer.codes(x)
    assert codes.shape == x.shape
    assert codes.min() >= quantizer.grid.low and codes.max() <= quantizer.grid.high
    assert torch.equal(dequantize(codes, scale, zero, quantizer.grid), quantizer(x))
    assert quantizer(x)[0, 0] == 0.0
    step = scale.max()
    limit = step if (bits, symmetric) != (2, True) else 1.01 * step
    assert (quantizer(x) - x).abs().max() <= limit


@pytest.mark.parametrize(("bits", "kind"), KINDS[:5])
def test_gradients_are_the_plain_ones(bits: int, kind: str) -> None:
    grid = Grid(bits, levels=kind)  # type: ignore[arg-type]
    ranges = MSEOptimal(torch.randn(4, 10), grid, learned=True)
    x = torch.randn(4, 10).mul_(1.5).requires_grad_()
    weight = torch.randn(4, 10)
    (Quantizer(grid, ranges)(x) * weight).sum().backward()
    twin, scale = x.detach().clone().requires_grad_(), ranges.scale.detach().clone().requires_grad_()
    (straight(twin, scale, grid.zero, grid.low, grid.high, grid.amplitude) * weight).sum().backward()
    assert x.grad is not None and ranges.scale.grad is not None
    assert twin.grad is not None and scale.grad is not None
    assert torch.allclose(x.grad, twin.grad)
    assert torch.allclose(ranges.scale.grad, scale.grad, atol=1e-5)


def test_a_range_that_saturates_nothing_passes_every_gradient() -> None:
    x = torch.randn(4, 10, requires_grad=True)
    Quantizer(Grid(8, per="token"), MinMax())(x).sum().backward()
    assert x.grad is not None and torch.equal(x.grad, torch.ones_like(x))


def test_means_of_extremes_are_corrected_when_read_and_never_fed_back() -> None:
    observer, seen = EMAMinMax(0.9), [torch.ones(1, 6), torch.randn(1, 6) * 3, torch.randn(1, 6)]
    quantizer = Quantizer(STATIC, ranges := Static(STATIC, observer))
    with pytest.raises(ValueError, match=r"seen nothing: run zsaq\.calibrate"):
        quantizer(seen[0])
    ranges.observing = observer
    for t, x in enumerate(seen, 1):
        assert torch.equal(quantizer(x), x)
        expected = running(seen[:t], 0.9)
        assert [float(bound) for bound in observer.bounds()] == pytest.approx(expected, abs=1e-5)
    ranges.observing = None
    for momentum in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="momentum"):
            EMAMinMax(momentum)


@pytest.mark.parametrize("grid", [STATIC, Grid(8, per="tensor"), Grid(2, per="tensor", levels="half")], ids=str)
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.95])
def test_a_frozen_range_is_that_of_its_bounds_to_the_bit(grid: Grid, momentum: float) -> None:
    quantizer = Quantizer(grid, ranges := Static(grid, EMAMinMax(momentum)))
    student, seen = nn.Sequential(quantizer), [{"input": torch.randn(2, 6)} for _ in range(3)]
    for count, batch in enumerate(seen, 1):
        calibrate(student, [batch])
        assert ranges.observer.updates == count and ranges.observing is None
        lo, hi = torch.zeros(1, 1), torch.zeros(1, 1)
        for x in seen[:count]:
            lo.lerp_(x["input"].amin().view(1, 1), 1 - momentum)
            hi.lerp_(x["input"].amax().view(1, 1), 1 - momentum)
        scale, zero = from_bounds(lo / (1 - momentum**count), hi / (1 - momentum**count), grid)
        x = torch.randn(5, 6)
        assert torch.equal(quantizer(x), ((round_to_grid(x, scale, zero, grid) - zero) * scale))
    kept = {key: value.clone() for key, value in ranges.state_dict().items()}
    quantizer(torch.full((1, 6), 50.0))
    assert kept.keys() == {"scale", "zero"} and all(torch.equal(ranges.get_buffer(key), kept[key]) for key in kept)
    fresh = Quantizer(grid, Static(grid))
    fresh.load_state_dict(quantizer.state_dict())
    assert torch.equal(fresh(x), quantizer(x))
    ranges.forget()
    assert ranges.observer.updates == 0 and ranges.observer.momentum == momentum
    with pytest.raises(ValueError, match="seen nothing"):
        quantizer(x)


def test_a_frozen_range_is_read_without_waiting_for_the_device() -> None:
    """A tensor on the meta device has no numbers: whoever looks at one fails."""
    ranges = Static(STATIC)
    ranges.hold(torch.tensor([[-1.0]]), torch.tensor([[2.0]]))
    assert Quantizer(STATIC, ranges).to("meta")(torch.empty(2, 3, device="meta")).shape == (2, 3)


def test_a_frozen_range_keeps_its_precision_where_the_model_is_cast() -> None:
    ranges = Static(STATIC)
    ranges.hold(torch.tensor([[-1.0]]), torch.tensor([[2.0]]))
    assert ranges.half().scale.dtype == torch.float32 and float(ranges.scale) == torch.tensor(3.0) / 255


def test_ranges_answer_what_they_are_asked() -> None:
    x, halves = torch.randn(3, 8), Grid(2, levels="half")
    dynamic, searched, learned = MinMax(), MSEOptimal(x, Grid(4)), MSEOptimal(x, Grid(4), learned=True)
    answers = [(ranges.static, ranges.kept) for ranges in (dynamic, searched, Static(STATIC))]
    assert answers == [(False, False), (False, True), (True, True)]
    assert learned.trained() is learned.scale and searched.trained() is None and dynamic.trained() is None
    covered = [Grid(4), halves, Grid(2, levels="ternary"), Grid(4, symmetric=False), Grid(2)]
    assert [dynamic.covers(grid) for grid in covered] == [True, True, True, True, False]
    assert not any(ranges.covers(Grid(4)) for ranges in (searched, learned, Static(STATIC)))


def test_rows_of_a_table_are_the_table_s_rows() -> None:
    table = torch.randn(10, 8)
    for grid in (Grid(4), Grid(4, per=4), Grid(4, symmetric=False)):
        quantizer = Quantizer(grid, MSEOptimal(groups(table, grid), grid))
        index = torch.tensor([[1, 3], [9, 1]])
        assert torch.equal(quantizer.rows(table[index], index), quantizer(table)[index])


def test_a_group_size_must_divide() -> None:
    with pytest.raises(ValueError, match="5 does not divide the input dimension 8"):
        groups(torch.randn(2, 8), Grid(4, per=5))


def test_a_row_of_zeros_stays_zeros_where_zero_is_a_level() -> None:
    for grid in (Grid(4), Grid(2, levels="ternary"), Grid(4, symmetric=False)):
        x = torch.zeros(2, 8)
        assert torch.equal(Quantizer(grid, MSEOptimal(x, grid))(x), x)
    half = Grid(2, levels="half")
    assert Quantizer(half, MSEOptimal(torch.zeros(2, 8), half))(torch.zeros(2, 8)).abs().max() < 1e-7


def test_asymmetric_minmax_passes_every_gradient() -> None:
    x = torch.randn(6, 20, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    Quantizer(Grid(4, symmetric=False), MinMax())(x).sum().backward()
    assert x.grad is not None and (x.grad == 1).all()


def test_a_group_of_zeros_stays_zeros_in_half_precision() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for symmetric in (True, False):
            x = torch.zeros(2, 4, dtype=dtype)
            assert torch.equal(Quantizer(Grid(8, symmetric=symmetric, per="token"), MinMax())(x), x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_row_of_zeros_keeps_a_scale_when_the_student_is_cast(dtype: torch.dtype) -> None:
    table = torch.zeros(3, 8)
    table[1] = 1.0
    scale, _ = MSEOptimal(table, Grid(4)).to(dtype)(table, Grid(4))
    assert scale.dtype == torch.float32 and (scale > 0).all()
