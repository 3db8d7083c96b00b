"""Gradient inundation against plain loops, its bounds, and that it never waits for the device."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reference_inundation import adam, codes, inundated, nesterov, search
from toys_optim import closure_of, codes_of_shapes, gradients_of, make_batch, make_student, params, same
from zsaq.quant.config import Grid, QuantConfig
from zsaq.quant.quantizer import Quantizer
from zsaq.quant.ranges import MinMax
from zsaq.train.inundation import Bucket, GradientInundation, WeightCodes, stretch, weight_codes

GRIDS = [Grid(4), Grid(4, symmetric=False), Grid(2, levels="half"), Grid(3, per="tensor"), Grid(8, symmetric=False)]
W4 = QuantConfig(weight=Grid(4), ranges="minmax")


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_steps_are_those_of_the_plain_search(grid: Grid, kind: str) -> None:
    held = codes_of_shapes(grid)
    w = [c.weight for c in held]
    twin = [p.detach().clone() for p in w]

    def make(weights: list[Tensor]) -> torch.optim.Optimizer:
        if kind == "sgd":
            return torch.optim.SGD(weights, 1e-3, 0.9, nesterov=True)
        return torch.optim.Adam(weights, 1e-5)

    plain, optimizer = make(twin), GradientInundation(make(w), held, share=0.01)
    for seed in range(2):
        before = [p.detach().clone() for p in w]
        for p, q, g in zip(w, twin, gradients_of(held, seed), strict=True):
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
    (held,) = codes_of_shapes(Grid(4), [(24, 144)])
    w = held.weight
    base = torch.optim.SGD([w], 1e-4, 0.9, nesterov=True) if kind == "sgd" else torch.optim.Adam([w], 1e-4)
    optimizer = GradientInundation(base, [held], share=0.02)
    grads = [gradients_of([held], seed)[0] for seed in range(3)]
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

    kappa = stretch(changed, torch.full((len(counts),), share * 100 * (1 - 1e-6)), 7)
    expected = [search(lambda k, row=row: row[int(k * 7) % 300], 100, share) for row in counts]
    assert kappa.tolist() == expected


@pytest.mark.parametrize("grid", [*GRIDS, Grid(4, per=8)], ids=str)
def test_codes_are_the_quantizers(grid: Grid) -> None:
    rows = torch.randn(3, 6, 16)
    member = WeightCodes(rows[0], Quantizer(grid, MinMax()))
    for got, trial in zip(member(rows), rows, strict=True):
        assert torch.equal(got, member.quantizer.codes(trial)[0].to(got))
        if grid.per != 8:
            assert torch.equal(got, codes(trial, grid).view_as(got))


def test_the_share_is_met_and_kappa_bounded() -> None:
    held = codes_of_shapes(Grid(4))
    optimizer = GradientInundation(torch.optim.SGD([c.weight for c in held], 1e-3), held, share=0.05)
    before = [c.quantizer.codes(c.weight)[0] for c in held]
    for c, g in zip(held, gradients_of(held, 0), strict=True):
        c.weight.grad = g
    optimizer.step()
    changed = [int((c.quantizer.codes(c.weight)[0] != old).sum()) for c, old in zip(held, before, strict=True)]
    for n, kappa, c in zip(changed, optimizer.kappa.tolist(), held, strict=True):
        need = math.ceil(0.05 * c.weight.numel())
        assert 1 <= kappa <= 128
        assert kappa == 128 or n >= need
        assert kappa in (1, 128) or n <= 1.06 * need + 2
    assert 1 < optimizer.kappa[0] < 128 and optimizer.kappa[-1] == 128
    measured = optimizer.diagnostics()
    total = sum(c.weight.numel() for c in held)
    assert measured["codes changed"] == pytest.approx(sum(changed) / total, rel=1e-5)
    assert measured["kappa"] == pytest.approx(optimizer.kappa.mean().item())


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
    held = codes_of_shapes(Grid(4), [(8, 16), (8, 16)])
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
