"""Gradient inundation in a training: schedules, checkpoints, other wrappers, and what it refuses."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from toys_optim import closure_of, codes_of_shapes, gradients_of, make_batch, make_student
from zsaq.quant.config import Grid, QuantConfig
from zsaq.quant.model import quantize_model
from zsaq.train.inundation import GradientInundation, weight_codes
from zsaq.train.loop import Loop
from zsaq.train.objectives import KL
from zsaq.train.optim import Wrapper
from zsaq.train.sam import SAM
from zsaq.train.trainer import distill

W4 = QuantConfig(weight=Grid(4), ranges="minmax")


def test_the_share_follows_the_learning_rate() -> None:
    (held,) = codes_of_shapes(Grid(4), [(24, 144)])
    base = torch.optim.SGD([held.weight], 1e-3)
    optimizer = GradientInundation(base, [held], share=0.05)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer.innermost, [1], 0.1)
    measured = []
    for _ in range(2):
        held.weight.grad = gradients_of([held], 0)[0]
        optimizer.step()
        schedule.step()
        measured.append(optimizer.diagnostics())
    assert measured[0]["codes changed"] == pytest.approx(0.05, abs=0.003)
    assert measured[1]["codes changed"] == pytest.approx(0.005, abs=0.002)


def test_the_warm_up_caps_at_128_and_survives_a_checkpoint() -> None:
    (held,) = codes_of_shapes(Grid(4), [(24, 144)])
    caps = []
    state: dict[str, Any] = {}
    for step in range(3):
        base = torch.optim.SGD([held.weight], 1e-12)  # too small ever to meet the share
        optimizer = GradientInundation(base, [held], cap=1024, warmup=2)
        if step:
            optimizer.load_state_dict(state)
        held.weight.grad = gradients_of([held], 0)[0]
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
    assert {"kappa", "codes changed", "gap"} <= sam.diagnostics().keys()
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
