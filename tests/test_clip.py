"""Clip alone and inside SAM: the gradient that it clips, and the one that it leaves."""

import copy

import pytest
import torch
from torch.nn.functional import mse_loss

from toys_optim import closure_of, make_batch, make_student, params, same, watch
from zsaq.train.optim import Clip
from zsaq.train.sam import SAM


def test_clips_the_second_gradient_only() -> None:
    student, batch = make_student(), make_batch()
    plain = copy.deepcopy(student)
    clip = Clip(torch.optim.SGD(student.parameters(), lr=0.1), 0.01)
    optimizer = SAM(clip, student, rho=0.05)
    looks, see = watch(student)
    optimizer.step(closure_of(student, batch, see=see))
    SAM(torch.optim.SGD(plain.parameters(), lr=0.0), plain, rho=0.05).step(closure_of(plain, batch))
    second = torch.cat([p.grad.flatten() for p in plain.parameters() if p.grad is not None])
    assert optimizer.diagnostics()["norm"] == pytest.approx(float(second.norm()), rel=1e-5) and clip.norm > 0.01
    step = torch.cat([(a - b).flatten() for a, b in zip(params(student).values(), params(plain).values(), strict=True)])
    torch.testing.assert_close(step, -0.1 * 0.01 * second / second.norm(), rtol=1e-2, atol=1e-7)
    moved = torch.cat([(looks[1][name] - looks[0][name]).flatten() for name in looks[0]])
    assert float(moved.norm()) == pytest.approx(0.05, rel=1e-4)


def test_clip_alone() -> None:
    student, batch = make_student(), make_batch()
    clip = Clip(torch.optim.SGD(student.parameters(), lr=0.1), 1e9)
    plain = copy.deepcopy(student)
    loss = clip.step(closure_of(student, batch))
    assert loss is not None and float(loss) == pytest.approx(float(mse_loss(plain(batch[0]), batch[1]).detach()))
    torch.optim.SGD(plain.parameters(), lr=0.1).step(closure_of(plain, batch))
    torch.testing.assert_close(params(student), params(plain))
    before = params(student)
    next(student.parameters()).grad = torch.full_like(next(student.parameters()), torch.nan)
    with pytest.raises(ValueError, match="no step was taken"):
        clip.step()
    assert same(params(student), before)
