"""What a teacher is shown fits it, what works in place changes nothing, and other kinds of BatchNorm are BatchNorms."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vision_toys import CLASSES, cnn, images, resnet
from zsaq import Grid, ImageSpec, QuantConfig, compensate, one_pass, quantize, quantize_model, save
from zsaq.student import refuse_plain
from zsaq.train.objectives import KL
from zsaq.train.pair import Pair
from zsaq.vision.images import real
from zsaq.vision.job import ImageJob
from zsaq.vision.models import batch_norms, blocks, classifier, has_batch_norms
from zsaq.vision.onepass import SAME, onepass, said
from zsaq.vision.presets import preset_config, uniform


class Sum(nn.Module):
    """An answer that is changed, in place or not, before the BatchNorm reads it."""

    def __init__(self, inplace: bool, how: str) -> None:
        super().__init__()
        self.inplace, self.how = inplace, how
        self.c0, self.b1, self.r1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        self.c1, self.b2, self.r2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c0(x)
        y = self.c1(self.r1(self.b1(x)))
        if self.how == "sum":
            y = y.add_(x) if self.inplace else y + x
        else:
            y = y.relu_() if self.inplace else y.relu()
        return self.head(self.r2(self.b2(y)).mean((2, 3)))


def summed(inplace: bool, how: str) -> nn.Module:
    torch.manual_seed(0)
    return classifier(Sum(inplace, how).eval())


@pytest.mark.parametrize("how", ["sum", "relu"])
@pytest.mark.parametrize("preset", ["uniform", "brecq"])
def test_what_is_done_in_place_behind_a_layer_is_no_batch_norm_of_its_own(how: str, preset: str) -> None:
    states, batch = [], {"pixel_values": images(16, 16)}
    for inplace in (False, True):
        teacher = summed(inplace, how)
        config = preset_config("w2a4", preset, teacher, ImageSpec(CLASSES, 16))
        states.append(one_pass(quantize_model(teacher, config), teacher, [batch]).state_dict())
    moved = (states[0]["module.c1.bias"] - teacher.state_dict()["module.c1.bias"]).abs().max()
    assert moved > 1e-3
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name])


def test_a_student_of_min_max_weights_is_fresh_too() -> None:
    teacher, batch = classifier(cnn()), {"pixel_values": images(8, 16)}
    config = uniform("w4a4", teacher)
    other = classifier(cnn())
    with torch.no_grad():
        next(m for m in other.modules() if isinstance(m, nn.Linear)).bias.add_(1)
    with pytest.raises(ValueError, match=r"module.linear.bias of the student is not that of the teacher"):
        one_pass(quantize_model(teacher, config), other, [batch])
    student = one_pass(quantize_model(teacher, config), teacher, [batch])
    with pytest.raises(ValueError, match=r"module.bn1.running_mean of the student .*fresh zsaq.quantize_model"):
        one_pass(student, teacher, [batch])
    with pytest.raises(ValueError, match=r"module.conv1 holds torch.bfloat16, .*use .float\(\)"):
        one_pass(quantize_model(teacher, config).bfloat16(), teacher, [batch])


@pytest.mark.parametrize("method", ["onepass", "onepass-noise", "zeroq", "gdfq"])
@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (ImageSpec(7, 16), r"answers \(1, 4\) to one image where the spec has 7 classes"),
        (ImageSpec(2, 16), r"answers \(1, 4\) to one image where the spec has 2 classes"),
        (ImageSpec(4, 16, 1), r"Cnn cannot take an image of ImageSpec\(classes=4, size=16, channels=1\)"),
    ],
)
def test_a_spec_of_another_net_is_told(method: str, spec: ImageSpec, told: str) -> None:
    teacher = cnn().train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    with pytest.raises(ValueError, match=told):
        quantize(teacher, "w4a4", method=method, spec=spec)
    assert teacher.training and all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


class Aside(nn.Module):
    """A layer that no image reaches, beside a net."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.aside = cnn(), nn.Linear(8, 4)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.net(pixels)


@pytest.mark.parametrize("method", ["genie", "onepass-blocks", "onepass-blocks-kl"])
def test_what_no_image_reaches_stays_in_floats_where_a_rule_says_so(method: str) -> None:
    teacher, spec = Aside().eval(), ImageSpec(CLASSES, 16)
    config = preset_config("w4a4", "brecq", classifier(teacher), spec)
    config = replace(config, rules=(("module.aside", None), *config.rules))
    few: dict[str, Any] = {"images": 4, "image_steps": 1, "steps": 1, "batch_size": 2}
    student = quantize(teacher, config, method=method, spec=spec, effort="light", **few)
    assert torch.equal(student.module.aside.weight, teacher.aside.weight)
    assert type(student.module.aside) is nn.Linear


def test_synchronized_batch_norms_are_batch_norms() -> None:
    plain, batch = cnn(), {"pixel_values": images(4, 16)}
    several = nn.SyncBatchNorm.convert_sync_batchnorm(cnn())
    assert has_batch_norms(several) and len(batch_norms(several)) == len(batch_norms(plain))
    spec = ImageSpec(CLASSES, 16)
    config = preset_config("w3a3", "brecq", classifier(plain), spec)
    states = [onepass(each, config, spec, batch).state_dict() for each in (plain, several)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    quantize(several, "w4a4", method="onepass", spec=spec, images=4, image_steps=2)


def test_one_class_has_no_divergence() -> None:
    teacher = classifier(nn.Sequential(nn.Flatten(), nn.Linear(12, 1)))
    with pytest.raises(ValueError, match="the models answer one number, of which KL is always 0"):
        KL()(Pair(teacher, teacher, {"pixel_values": torch.ones(2, 3, 2, 2)}))


def test_what_steps_were_worth_is_said() -> None:
    assert said(1.0, 0.9) == ""
    assert "changed next to nothing" in said(1.0, 1.0) and "changed next to nothing" in said(0.0, 0.0)
    assert "did harm" in said(1.0, 1 + 2 * SAME) and "changed next to nothing" in said(1.0, 1 - SAME / 2)
    assert "take the method without them" in said(1.0, 1.9) and "is as it was before them" in said(1.0, 2.1)
    assert "did harm" in said(1.0, float("nan")) and "did harm" in said(1.0, float("inf"))
    assert "changed next to nothing" in said(-1e-8, 1e-8)  # what float32 leaves of nothing


class Pairs(nn.Module):
    """Answers two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.net = cnn()

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        answer = self.net(pixels)
        return answer, answer


def test_a_net_that_answers_several_tensors_is_told() -> None:
    with pytest.raises(ValueError, match="answers a tuple; give a model that answers logits"):
        quantize(Pairs(), "w4a4", method="onepass", spec=ImageSpec(CLASSES, 16))


def test_real_images_may_have_gradients() -> None:
    pixels = images(6, 16).requires_grad_()
    few: dict[str, Any] = {"images": 6, "steps": 3, "batch_size": 3}
    quantize(cnn(), "w4a4", method="onepass-kl-real", spec=ImageSpec(CLASSES, 16), real=lambda: pixels, **few)
    assert pixels.grad is None


def test_a_preset_names_the_layers_of_a_plain_net_as_they_are_quantized() -> None:
    spec = ImageSpec(CLASSES, 16)
    config = preset_config("w4a4", "brecq", cnn(), spec)
    assert config == preset_config("w4a4", "brecq", classifier(cnn()), spec)
    quantize(cnn(), config, method="onepass-noise", spec=spec, images=4)


@pytest.mark.parametrize("damping", ["a", None, float("nan"), -1.0])
def test_a_damping_that_is_no_number_is_told(damping: Any) -> None:
    teacher, batch = classifier(cnn()), {"pixel_values": images(2, 16)}
    student = quantize_model(teacher, QuantConfig(Grid(4), None))
    for fit in (
        lambda: one_pass(student, teacher, [batch], damping=damping),
        lambda: compensate(student, [batch], blocks(student), damping=damping),
    ):
        with pytest.raises(ValueError, match=rf"damping is {re.escape(repr(damping))}; give a positive number"):
            fit()


def test_a_rate_beyond_all_bounds_costs_no_image() -> None:
    with pytest.raises(ValueError, match=r"speed is 1e\+300, which float32 does not hold"):
        quantize(resnet(), "w4a4", method="onepass-kl", spec=ImageSpec(CLASSES, 32), speed=1e300, images=1 << 30)


@pytest.mark.parametrize("pixels", [[1, 2], images(4, 8), images(4, 16)[:, :1]])
def test_real_images_of_another_kind_are_told(pixels: Any) -> None:
    job = ImageJob(cnn(), ImageSpec(CLASSES, 16), real=lambda: pixels)
    with pytest.raises(ValueError, match=r"make it answer one tensor of floats \[N, 3, 16, 16\]"):
        real(job, 2, 0)


def test_a_student_of_a_plain_net_comes_back_by_its_state(tmp_path: Path, capfd: Any) -> None:
    spec = ImageSpec(CLASSES, 16)
    config = preset_config("w4a4", "brecq", cnn(), spec)
    student: Any = quantize(cnn(), config, method="onepass-noise", spec=spec, images=4)
    with pytest.raises(ValueError, match=r"Classifier is no model of transformers, .* save its state_dict\(\)"):
        save(student, tmp_path / "student")
    for refused in (student.save_pretrained, student.push_to_hub):
        with pytest.raises(ValueError, match=r"Classifier is no model of transformers, .* save its state_dict\(\)"):
            refused("student", max_shard_size="1GB")
    said = capfd.readouterr().err
    assert said.count("comes back by its state_dict()") == 1 and said.index("plain module") < said.index("effort")
    again = quantize_model(classifier(cnn()), config)
    again.load_state_dict(student.state_dict())
    shown = images(4, 16)
    assert torch.equal(again.eval()(shown), student.eval()(shown))


def test_fewer_real_images_than_asked_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    job = ImageJob(cnn(), ImageSpec(CLASSES, 16), real=lambda: images(8, 16))
    assert len(real(job, 9, 0)["pixel_values"]) == 8
    assert "real() answers 8 images of the 9 asked for: the row is of 8" in capsys.readouterr().err


def test_a_student_of_a_plain_module_holds_no_method_of_its_own() -> None:
    student = quantize(cnn(), "w4a4", method="rtn-noise", spec=ImageSpec(CLASSES, 16), images=8)
    for name in ("save_pretrained", "push_to_hub"):  # which would pickle as its name, and not come back
        assert isinstance(vars(student)[name], partial) and vars(student)[name].func is refuse_plain
