"""Gradient inundation against plain loops, its bounds, and that it never waits for the device."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reference_inundation import adam, codes, inundated, nesterov, search
from toys_optim import closure_of, make_batch, make_student, params, same
from zsaq.quant.config import Grid, QuantConfig
from zsaq.quant.model import quantize_model
from zsaq.quant.quantizer import Quantizer
from zsaq.quant.ranges import MinMax
from zsaq.train.inundation import Bucket, GradientInundation, WeightCodes, stretch, weight_codes
from zsaq.train.objectives import KL
from zsaq.train.optim import Wrapper
from zsaq.train.sam import SAM
from zsaq.train.trainer import Loop, distill

SHAPES = [(16, 3, 3, 3), (24, 16, 3, 3), (8, 27), (10, 40), (24, 144)]
GRIDS = [Grid(4), Grid(4, symmetric=False), Grid(2, levels="half"), Grid(3, per="tensor"), Grid(8, symmetric=False)]
W4 = QuantConfig(weight=Grid(4), ranges="minmax")


def weights(grid: Grid, shapes=SHAPES) -> list[WeightCodes]:
    rng = torch.Generator().manual_seed(1)
    return [WeightCodes(nn.Parameter(0.1 * torch.randn(s, generator=rng)), Quantizer(grid, MinMax())) for s in shapes]


def gradients(held: list[WeightCodes], seed: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(c.weight.shape, generator=rng) * 10.0**-i for i, c in enumerate(held)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_steps_are_those_of_the_plain_search(grid: Grid, kind: str) -> None:
    held = weights(grid)
    w = [c.weight for c in held]
    twin = [p.detach().clone() for p in w]

    def make(weights: list[Tensor]) -> torch.optim.Optimizer:
        if kind == "sgd":
            return torch.optim.SGD(weights, 1e-3, 0.9, nesterov=True)
        return torch.optim.Adam(weights, 1e-5)

    plain, optimizer = make(twin), GradientInundation(make(w), held, share=0.01)
    for seed in range(2):
        before = [p.detach().clone() for p in w]
        for p, q, g in zip(w, twin, gradients(held, seed), strict=True):
            q.copy_(p.detach())
            p.grad = q.grad = g
        plain.step()
        optimizer.step()
        for i, (old, ended, new) in enumerate(zip(before, twin, w, strict=True)):
            expected, kappa = inundated(old, ended, grid, 0.01)
            assert float(optimizer.kappa[i]) == kappa
            assert torch.equal(new, expected)
    assert optimizer.kappa.max() > 1


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_the_way_is_the_optimizers_formula(kind: str) -> None:
    """From plain gradients, whatever the stretch before: kappa only multiplies the step."""
    (held,) = weights(Grid(4), [(24, 144)])
    w = held.weight
    base = torch.optim.SGD([w], 1e-4, 0.9, nesterov=True) if kind == "sgd" else torch.optim.Adam([w], 1e-4)
    optimizer = GradientInundation(base, [held], share=0.02)
    grads = [gradients([held], seed)[0] for seed in range(3)]
    steps = nesterov(w, grads, 1e-4, 0.9) if kind == "sgd" else adam(w, grads, 1e-4, 0.9, 0.999)
    for g, step in zip(grads, steps, strict=True):
        before, w.grad = w.detach().clone(), g
        optimizer.step()
        assert float(optimizer.kappa[0]) > 1
        torch.testing.assert_close(w.detach() - before, optimizer.kappa[0] * step, rtol=1e-3, atol=1e-6)


@given(seed=st.integers(0, 10**6), share=st.floats(0.01, 0.3))
def test_lock_step_equals_one_after_the_other(seed: int, share: float) -> None:
    """For any function of kappa, also one that goes up and down."""
    table = torch.randint(0, 40, (4, 300), generator=torch.Generator().manual_seed(seed))
    counts = table.tolist()
    layer = torch.arange(len(counts))

    def changed(kappa: Tensor) -> Tensor:
        return table[layer, (kappa * 7).long() % 300]

    found = stretch(changed, torch.full((len(counts),), share * 100 * (1 - 1e-6)), 7)
    expected = [search(lambda k, row=row: row[int(k * 7) % 300], 100, share) for row in counts]
    assert found.tolist() == expected


@pytest.mark.parametrize("grid", [*GRIDS, Grid(4, per=8)], ids=str)
def test_codes_are_the_quantizers(grid: Grid) -> None:
    rows = torch.randn(3, 6, 16)
    member = WeightCodes(rows[0], Quantizer(grid, MinMax()))
    for got, trial in zip(member(rows), rows, strict=True):
        assert torch.equal(got, member.quantizer.codes(trial)[0].to(got))
        if grid.per != 8:
            assert torch.equal(got, codes(trial, grid).view_as(got))


def test_the_share_is_met_and_kappa_bounded() -> None:
    held = weights(Grid(4))
    optimizer = GradientInundation(torch.optim.SGD([c.weight for c in held], 1e-3), held, share=0.05)
    before = [c.quantizer.codes(c.weight)[0] for c in held]
    for c, g in zip(held, gradients(held, 0), strict=True):
        c.weight.grad = g
    optimizer.step()
    changed = [int((c.quantizer.codes(c.weight)[0] != old).sum()) for c, old in zip(held, before, strict=True)]
    for n, kappa, c in zip(changed, optimizer.kappa.tolist(), held, strict=True):
        need = math.ceil(0.05 * c.weight.numel())
        assert 1 <= kappa <= 128
        assert kappa == 128 or n >= need
        assert kappa in (1, 128) or n <= 1.06 * need + 2
    assert 1 < optimizer.kappa[0] < 128 and optimizer.kappa[-1] == 128
    told = optimizer.diagnostics()
    total = sum(c.weight.numel() for c in held)
    assert told["codes changed"] == pytest.approx(sum(changed) / total, rel=1e-5)
    assert told["kappa"] == pytest.approx(optimizer.kappa.mean().item())


def test_a_large_step_is_the_bases_to_the_bit() -> None:
    one, two = make_student(W4), make_student(W4)
    batch = make_batch()
    optimizer = GradientInundation(torch.optim.SGD(one.parameters(), 10.0), weight_codes(one), share=0.01)
    loss = optimizer.step(closure_of(one, batch))
    torch.testing.assert_close(loss, closure_of(two, batch)())
    torch.optim.SGD(two.parameters(), 10.0).step()
    assert optimizer.kappa.tolist() == [1.0, 1.0]
    assert same(params(one), params(two))


def test_biases_and_norms_move_as_the_base_moves_them() -> None:
    one, two = make_student(W4), make_student(W4)
    optimizer = GradientInundation(torch.optim.SGD(one.parameters(), 1e-4), weight_codes(one), share=0.05)
    optimizer.step(closure_of(one, make_batch()))
    closure_of(two, make_batch())()
    torch.optim.SGD(two.parameters(), 1e-4).step()
    inundated_ones, plain = params(one), params(two)
    assert optimizer.kappa.min() > 1
    for name in plain:
        stretched = name in ("first.weight", "last.weight")
        assert torch.equal(inundated_ones[name], plain[name]) is not stretched, name


@pytest.mark.parametrize("nothing", [None, 0.0])
def test_a_weight_without_a_gradient_stays(nothing: float | None) -> None:
    """Also where momentum and weight decay would move it, and however far the search goes."""
    held = weights(Grid(4), [(8, 16), (8, 16)])
    a, b = (c.weight for c in held)
    optimizer = GradientInundation(torch.optim.SGD([a, b], 1e-2, 0.9, weight_decay=0.1), held, cap=1024)
    a.grad, b.grad = torch.randn_like(a), torch.randn_like(b)
    optimizer.step()
    before = b.detach().clone()
    b.grad = None if nothing is None else torch.zeros_like(b)
    optimizer.step()
    assert torch.equal(b, before)
    assert optimizer.kappa[1] == 1
    assert optimizer.diagnostics()["kappa"] == optimizer.kappa[0]
    assert bool(a.isfinite().all())


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_nothing_is_read_back(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    student = make_student(W4)
    optimizer = GradientInundation(kind(student.parameters(), 1e-4), weight_codes(student))
    optimizer.step(closure_of(student, make_batch()))
    awake = False  # while the inundation works; the base and the closure may read what they like

    def guard(name: str) -> None:
        read = getattr(Tensor, name)

        def guarded(self: Tensor, *args: Any, **more: Any) -> Any:
            assert not awake, f"the host waits for the device: Tensor.{name}"
            return read(self, *args, **more)

        monkeypatch.setattr(Tensor, name, guarded)

    def watch(owner: type, name: str) -> None:
        work = getattr(owner, name)

        def watched(self: Any) -> None:
            nonlocal awake
            awake = True
            work(self)
            awake = False

        monkeypatch.setattr(owner, name, watched)

    for name in ("item", "__bool__", "__float__", "__int__", "__index__", "tolist", "cpu", "numpy", "nonzero"):
        guard(name)
    watch(Bucket, "hold")
    watch(GradientInundation, "inundate")
    optimizer.step(closure_of(student, make_batch()))
    awake = True
    with pytest.raises(AssertionError, match="waits"):
        optimizer.kappa.max().item()


def test_the_share_follows_the_learning_rate() -> None:
    (held,) = weights(Grid(4), [(24, 144)])
    base = torch.optim.SGD([held.weight], 1e-3)
    optimizer = GradientInundation(base, [held], share=0.05)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer.innermost, [1], 0.1)
    told = []
    for _ in range(2):
        held.weight.grad = gradients([held], 0)[0]
        optimizer.step()
        schedule.step()
        told.append(optimizer.diagnostics())
    assert told[0]["codes changed"] == pytest.approx(0.05, abs=0.003)
    assert told[1]["codes changed"] == pytest.approx(0.005, abs=0.002)


def test_the_warm_up_caps_at_128_and_survives_a_checkpoint() -> None:
    (held,) = weights(Grid(4), [(24, 144)])
    caps = []
    state: dict[str, Any] = {}
    for step in range(3):
        base = torch.optim.SGD([held.weight], 1e-12)  # too small ever to meet the share
        optimizer = GradientInundation(base, [held], cap=1024, warmup=2)
        if step:
            optimizer.load_state_dict(state)
        held.weight.grad = gradients([held], 0)[0]
        optimizer.step()
        caps.append(float(optimizer.kappa[0]))
        state = optimizer.state_dict()
    assert caps == [128.0, 128.0, 1024.0]


def test_it_owns_nothing_and_stands_inside_sam() -> None:
    student = make_student(W4)
    base = torch.optim.SGD(student.parameters(), 1e-4, 0.9)
    inner = GradientInundation(base, weight_codes(student))
    assert inner.param_groups is base.param_groups and inner.state is base.state and isinstance(inner, Wrapper)
    sam = SAM(inner, student, rho=0.01)
    sam.step(closure_of(student, make_batch()))
    assert {"kappa", "codes changed", "loss"} <= sam.diagnostics().keys()
    outer = GradientInundation(SAM(base, student, rho=0.01), weight_codes(student))
    assert outer.step(closure_of(student, make_batch())) is not None


@pytest.mark.parametrize("ranges", ["minmax", "searched", "learned"])
def test_distill_steps_with_it(ranges: Any) -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = teacher

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    model = Model().eval()
    student = quantize_model(model, QuantConfig(weight=Grid(3), ranges=ranges))
    base = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], 1e-2, 0.9, nesterov=True)
    optimizer = GradientInundation(base, weight_codes(student), share=0.02)
    held = optimizer.codes
    before = [c(c.rows()) for c in held]
    batches = [{"x": torch.randn(16, 8)} for _ in range(3)]
    distill(student, model, batches, KL(2.0), optimizer, 3, Loop(schedule="constant", warmup=0.0))
    assert all(bool((c(c.rows()) != old).any()) for c, old in zip(held, before, strict=True))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"share": 0.0}, "share"),
        ({"share": math.nan}, "share"),
        ({"cap": 100}, "power of 2"),
        ({"warmup": -1}, "warmup"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], match: str) -> None:
    student = make_student(W4)
    with pytest.raises(ValueError, match=match):
        GradientInundation(torch.optim.SGD(student.parameters(), 1e-4), weight_codes(student), **options)


def test_there_must_be_weights() -> None:
    student = make_student(W4)
    with pytest.raises(ValueError, match="no quantized layer"):
        weight_codes(nn.Linear(2, 2))
    biases = [p for name, p in student.named_parameters() if name.endswith("bias")]
    with pytest.raises(ValueError, match="trains none"):
        GradientInundation(torch.optim.SGD(biases, 1e-4), weight_codes(student))
