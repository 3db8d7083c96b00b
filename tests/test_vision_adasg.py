"""AdaSG and AdaDFQ: losses against their formulas, a generator that sees the student, short runs."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from reference_vision_adasg import generator_loss, student_loss
from vision_toys import CLASSES, cnn
from zsaq.quant.config import Grid, QuantConfig
from zsaq.quant.model import quantize_model
from zsaq.train.pair import Pair
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.losses.disagreement import AgreementCE, DisagreementCE, EntropyMargin
from zsaq.vision.models import classifier
from zsaq.vision.papers.adadfq import adadfq
from zsaq.vision.papers.adasg import EntropyOfDifference, adasg
from zsaq.vision.sources.generators import Conditional

SPEC = ImageSpec(CLASSES, 16)
W3 = QuantConfig(weight=Grid(3, symmetric=False), ranges="minmax")
SHORT: Any = {"steps": 2, "warmup": 1, "calibration": 1, "batch_size": 4, "lr": 1e-3}


def pair(scale: float = 1.0) -> Pair:
    torch.manual_seed(0)
    teacher, student = nn.Linear(6, 5), nn.Linear(6, 5)
    for model in (teacher, student):
        model.weight.data.mul_(scale)
    return Pair(teacher, student, {"input": torch.randn(7, 6), "labels": torch.arange(7) % 5})


@pytest.mark.parametrize("temperature", [1.0, 5.0, 20.0])
def test_the_students_loss_is_its_formula(temperature: float) -> None:
    p = pair(3.0)
    expected = student_loss(p.teacher.logits.tolist(), p.student.logits.tolist(), temperature)
    assert EntropyOfDifference(temperature)(p).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("margins", "disagree", "agree"), [((0.3, 0.8), 0.1, 0.1), ((0.1, 0.8), 0.2, 0.1)])
def test_the_generators_loss_is_its_formula(margins: tuple[float, float], disagree: float, agree: float) -> None:
    p = pair(3.0)
    expected = generator_loss(
        p.teacher.logits.tolist(), p.student.logits.tolist(), p.batch["labels"].tolist(), margins, disagree, agree
    )
    objective = EntropyMargin(*margins) + disagree * DisagreementCE() + agree * AgreementCE()
    assert objective(p).item() == pytest.approx(expected, rel=1e-5)


def test_agreement_is_the_least_loss_and_it_grows_as_the_variance() -> None:
    """T^2 (log C - H) tends to half the variance of P - S over classes."""
    p, log_c = pair(), math.log(5)
    same = EntropyOfDifference(20.0)(Pair(nn.Identity(), nn.Identity(), {"input": torch.randn(7, 5)}))
    assert same.item() == pytest.approx(-400 * log_c, rel=1e-6)
    half = 0.5 * (p.teacher.logits - p.student.logits).var(-1, unbiased=False).mean().item()
    assert EntropyOfDifference(20.0)(p).item() + 400 * log_c == pytest.approx(half, rel=0.1)
    assert half > 0.1


def test_the_generator_sees_the_student() -> None:
    """The margin's gradient reaches the images through the quantized student as well."""
    teacher = classifier(cnn()).requires_grad_(False)
    student = quantize_model(teacher, W3).requires_grad_(False)
    batch = Conditional(SPEC, 4)()
    images = batch["pixel_values"].detach()
    slopes = []
    for seen in (True, False):
        x = images.clone().requires_grad_()
        p = Pair(teacher, student, {"pixel_values": x, "labels": batch["labels"]})
        if not seen:
            vars(p)["student"] = Pair(teacher, student, {"pixel_values": images}).student
        slopes.append(torch.autograd.grad(DisagreementCE()(p), x)[0])
    assert not torch.allclose(*slopes)


@pytest.mark.parametrize("method", [adasg, adadfq])
def test_a_short_run_trains_a_student_alone(method: Any) -> None:
    teacher = cnn()
    kept = {name: value.clone() for name, value in teacher.state_dict().items()}
    one, two = (method(teacher, W3, SPEC, seed=1, **SHORT) for _ in range(2))
    assert all(torch.equal(value, kept[name]) for name, value in teacher.state_dict().items())
    moved = [not torch.equal(p, q) for p, q in zip(one.parameters(), teacher.parameters(), strict=True)]
    assert all(moved)
    assert all(
        torch.equal(p, q) and bool(p.isfinite().all()) for p, q in zip(one.parameters(), two.parameters(), strict=True)
    )


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="temperature"):
        EntropyOfDifference(0.0)
    with pytest.raises(ValueError, match="lower"):
        adasg(cnn(), W3, SPEC, margins=(0.8, 0.3), **SHORT)
