"""Late SAM and averaged students, against plain loops."""

import copy

import pytest
import torch

from toys_optim import MLP, adamw, closure_of, make_batch, make_student, params, same
from zsaq.quant.config import Grid, QuantConfig
from zsaq.quant.layers import quant_layers
from zsaq.quant.model import quantize_model
from zsaq.train.averaging import Averaged
from zsaq.train.optim import Clip
from zsaq.train.sam import SAM
from zsaq.train.state import read_state, write_state

LEARNED = QuantConfig(Grid(2, levels="half"), ranges="learned")


def test_late_sam_is_plain_steps_and_then_sams() -> None:
    student = make_student()
    plain = copy.deepcopy(student)
    late = SAM(Clip(adamw(student), 1.0), student, rho=0.5, after=2)
    base = Clip(adamw(plain), 1.0)
    for step in range(5):
        late.step(closure_of(student, make_batch()))
        (base if step < 2 else SAM(base, plain, rho=0.5)).step(closure_of(plain, make_batch()))
        assert same(params(student), params(plain)), f"step {step}"
        assert ("gap" in late.diagnostics()) == (step >= 2)


def test_the_mean_is_that_of_the_last_steps() -> None:
    """Latent weights, learned scales, norms and biases; the steps themselves are those of the base."""
    torch.manual_seed(1)
    student = quantize_model(MLP(), LEARNED)
    plain = copy.deepcopy(student)
    base, optimizer, walked = Clip(adamw(plain), 1.0), Averaged(Clip(adamw(student), 1.0), 3, 6), []
    for step in range(1, 7):
        base.step(closure_of(plain, make_batch()))
        walked.append(params(plain))
        assert optimizer.step(closure_of(student, make_batch())) is not None
        assert same(params(student), walked[-1]) == (step < 6)
    mean = {name: torch.stack([at[name] for at in walked[2:]]).double().mean(0).float() for name in walked[0]}
    torch.testing.assert_close(params(student), mean, rtol=1e-5, atol=1e-7)
    assert any("scale" in name and not torch.equal(mean[name], walked[-1][name]) for name in mean)
    fresh = copy.deepcopy(student)  # rounded anew from the mean: nothing of the last step is kept aside
    for (_, one), (_, other) in zip(quant_layers(student), quant_layers(fresh), strict=True):
        assert torch.equal(one.dequantized(), other.dequantized())


def test_a_mean_over_one_step_is_that_step() -> None:
    ends = []
    for wrap in (lambda base: base, lambda base: Averaged(base, 3, 3)):
        student = make_student()
        optimizer = wrap(Clip(adamw(student), 1.0))
        for _ in range(3):
            optimizer.step(closure_of(student, make_batch()))
        ends.append(params(student))
    assert same(*ends)


@pytest.mark.parametrize("stop", range(1, 6))
def test_both_go_on_from_their_state(stop: int, tmp_path) -> None:
    """Stopped before SAM, within it, before the mean and within it."""

    def made(student) -> Averaged:
        return Averaged(SAM(Clip(adamw(student), 1.0), student, rho=0.5, after=2), 4, 6)

    whole = make_student()
    optimizer = made(whole)
    for step in range(1, 7):
        optimizer.step(closure_of(whole, make_batch()))
        if step == stop:
            write_state(tmp_path / "kept", optimizer.state_dict())
            again = copy.deepcopy(whole)
    rest = made(again)
    rest.load_state_dict(read_state(tmp_path / "kept"))
    for _ in range(stop, 6):
        rest.step(closure_of(again, make_batch()))
    assert same(params(again), params(whole))


def test_counts_that_cannot_be() -> None:
    student = make_student()
    with pytest.raises(ValueError, match="after is -1; give the number of plain steps"):
        SAM(adamw(student), student, after=-1)
    for first, last in ((0, 3), (4, 3)):
        with pytest.raises(ValueError, match=f"first is {first}, last {last}; give 1 <= first <= last"):
            Averaged(adamw(student), first, last)
