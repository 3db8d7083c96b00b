"""Objectives of the core that vision methods need: cross-entropy with labels, and the worst input nearby."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vision_toys import CLASSES, cnn, images
from zsaq import KL, SAM, LogitMSE, Pair, QuantConfig, quantize_model
from zsaq.train.objectives import CE, AtWorstInput
from zsaq.vision.models import classifier


def couple() -> tuple[nn.Module, nn.Module]:
    teacher = classifier(cnn()).requires_grad_(False)
    return teacher, quantize_model(teacher, QuantConfig.parse("w3a16"))


def test_ce_takes_hard_and_soft_labels() -> None:
    models, x = couple(), images(6)
    hard = torch.tensor([0, 3, 1, 1, 2, 0])
    soft = torch.rand(6, CLASSES).softmax(-1)
    pair = Pair(*models, {"pixel_values": x, "labels": hard})
    log = pair.student.logits.log_softmax(-1)
    assert CE()(pair).item() == pytest.approx(-log[range(6), hard].mean().item(), rel=1e-5)
    pair = Pair(*models, {"pixel_values": x, "labels": soft})
    assert CE()(pair).item() == pytest.approx(-(soft * log).sum(-1).mean().item(), rel=1e-5)
    one_hot = Pair(*models, {"pixel_values": x, "labels": F.one_hot(hard, CLASSES).float()})
    assert CE()(one_hot).item() == pytest.approx(CE()(Pair(*models, {"pixel_values": x, "labels": hard})).item())


def test_ce_without_labels_says_so() -> None:
    with pytest.raises(ValueError, match="needs labels"):
        CE()(Pair(*couple(), {"pixel_values": images(2)}))


def test_worst_input_is_one_signed_step_through_both_models() -> None:
    (teacher, student), x = couple(), images(5)
    objective, epsilon = KL(2.0), 0.05
    moved = x.clone().requires_grad_()
    p, q = ((m(pixel_values=moved) / 2).log_softmax(-1) for m in (teacher, student))
    (4 * (p.exp() * (p - q)).sum(-1).mean()).backward()
    assert moved.grad is not None
    worst = {"pixel_values": x + epsilon * moved.grad.sign()}
    pair = Pair(teacher, student, {"pixel_values": x})
    value = AtWorstInput(objective, epsilon)(pair)
    assert value.item() == pytest.approx(objective(Pair(teacher, student, worst)).item(), rel=1e-5)
    assert value.item() > objective(pair).item()
    assert not x.requires_grad and x.grad is None


def test_worst_input_trains_the_student_alone_and_leaves_no_gradient_of_the_look() -> None:
    (teacher, student), x = couple(), images(4)
    clean = LogitMSE()
    student.zero_grad()
    AtWorstInput(clean, 0.01)(Pair(teacher, student, {"pixel_values": x})).backward()
    gradients = [p.grad.clone() for p in student.parameters() if p.grad is not None]
    look = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(clean(Pair(teacher, student, {"pixel_values": look})), look)
    student.zero_grad()
    clean(Pair(teacher, student, {"pixel_values": x + 0.01 * slope.sign()})).backward()
    known = [p.grad for p in student.parameters() if p.grad is not None]
    assert len(known) > 5
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(gradients, known, strict=True))
    assert all(p.grad is None for p in teacher.parameters())


def test_worst_input_inside_both_passes_of_sam() -> None:
    (teacher, student), x = couple(), images(4)
    objective = KL() + 1.0 * AtWorstInput(KL(), 0.02)
    pair, seen = Pair(teacher, student, {"pixel_values": x}), []
    optimizer = SAM(torch.optim.SGD(student.parameters(), 1e-3), student, 0.05)
    before = [p.detach().clone() for p in student.parameters()]

    def closure() -> torch.Tensor:
        nonlocal pair
        optimizer.zero_grad()
        loss = objective(pair)
        loss.backward()
        pair = pair.again()
        seen.append(loss.item())
        return loss

    optimizer.step(closure)
    assert len(seen) == 2 and seen[1] > seen[0]
    assert any(not torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("nan"), float("inf")])
def test_worst_input_refuses(epsilon: float) -> None:
    with pytest.raises(ValueError, match="epsilon"):
        AtWorstInput(KL(), epsilon)


def test_worst_input_needs_pixels() -> None:
    with pytest.raises(ValueError, match="pixel_values"):
        AtWorstInput(KL(), 0.1)(Pair(*couple(), {"labels": torch.zeros(1)}))
