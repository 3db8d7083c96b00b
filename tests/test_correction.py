"""Corrections of BatchNorms and biases: twice, on what is not finite, on nets that are wired in other ways."""

import copy
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from vision_toys import cnn, images, mobilenet
from zsaq import Grid, Loop, QuantConfig, calibrate, correct_batch_norm, one_pass, quantize_model
from zsaq.train.correction import answers_of
from zsaq.train.optim import NotFinite
from zsaq.vision.models import classifier

WEIGHTS = QuantConfig(Grid(3, symmetric=False), None)
BATCH = {"pixel_values": images(6, 16)}


def norm(**options: Any) -> nn.BatchNorm2d:
    made = nn.BatchNorm2d(4, **options)
    cast(Tensor, made.running_mean).normal_()
    cast(Tensor, made.running_var).uniform_(0.5, 2)
    return made


class Sides(nn.Module):
    """Two convolutions without bias, then their BatchNorms; everything is called by name."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(3, 4, 3, bias=False)
        self.first, self.second, self.head = norm(), norm(), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(input=x), self.b(input=x)
        return self.head(input=(self.first(input=a) + self.second(input=b)).relu().mean((2, 3)))


def pair(net: nn.Module) -> tuple[nn.Module, nn.Module]:
    teacher = classifier(net.eval())
    return quantize_model(teacher, WEIGHTS), teacher


def test_a_second_correction_moves_nothing() -> None:
    student, teacher = pair(cnn())
    correct_batch_norm(student, teacher, [BATCH])
    once = copy.deepcopy(student.state_dict())
    correct_batch_norm(student, teacher, [BATCH])
    moved = {name for name, value in student.state_dict().items() if not torch.equal(value, once[name])}
    assert not moved
    assert not torch.equal(once["module.bn1.running_mean"], teacher.state_dict()["module.bn1.running_mean"])


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 1e25])
def test_what_is_not_finite_is_told_and_moves_nothing(factor: float) -> None:
    student, teacher = pair(cnn())
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(NotFinite, match=r"what module.bn1 reads .* not finite") as caught:
        correct_batch_norm(student, teacher, [{"pixel_values": BATCH["pixel_values"] * factor}])
    assert caught.value.student is student
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_a_dead_channel_without_eps_keeps_its_variance() -> None:
    convolution = nn.Conv2d(3, 4, 3, bias=False)
    with torch.no_grad():
        convolution.weight[2] = 0
    teacher = classifier(nn.Sequential(convolution, norm(eps=0.0)).eval())
    for fit in (correct_batch_norm, one_pass):
        student = quantize_model(teacher, WEIGHTS)
        fit(student, teacher, [BATCH])
        own, origin = student.state_dict(), teacher.state_dict()
        assert all(value.isfinite().all() for value in own.values())
        assert own["module.1.running_var"][2] == origin["module.1.running_var"][2]


def test_batch_norms_behind_two_convolutions_leave_no_layer_bare(capsys: pytest.CaptureFixture[str]) -> None:
    student, teacher = pair(Sides())
    names = ["module.a", "module.b", "module.head"]
    answers = answers_of(teacher, names, BATCH, Loop().accelerator)
    assert answers.means.keys() == {"module.head"}
    one_pass(student, teacher, [BATCH])
    assert "no bias" not in capsys.readouterr().err
    correct_batch_norm(student, teacher, [BATCH])


def test_another_nets_answers_are_refused() -> None:
    student = calibrate(pair(cnn())[0], [BATCH])
    with pytest.raises(ValueError, match="no copy of the teacher, whose BatchNorm mobilenet"):
        correct_batch_norm(student, mobilenet(), [BATCH])
