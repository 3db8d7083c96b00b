"""Activations that round what they put out: chosen by type, told by coverage, filled by calibrate, else refused."""

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from toys import mlp
from vision_toys import cnn, images, mobilenet, regnet, resnet, vit
from zsaq import Grid, QuantConfig, calibrate, coverage, quantize_model
from zsaq.quant.layers import QuantActivation, QuantReLU, QuantReLU6, quant_activations
from zsaq.quant.plan import plan_of
from zsaq.quant.ranges import Static
from zsaq.vision.models import classifier

OUT = Grid(4, symmetric=False, per="tensor")
W4A4 = QuantConfig(Grid(4, symmetric=False), activation=OUT, ranges="minmax")


def ready(model: nn.Module, config: QuantConfig = W4A4, size: int = 32) -> nn.Module:
    return calibrate(quantize_model(model, config), [{"pixel_values": images(4, size, seed=s)} for s in range(2)])


@pytest.mark.parametrize("make", [resnet, regnet, mobilenet, lambda: classifier(cnn())])
def test_relus_change_class_and_nothing_else_does(make: Callable[[], nn.Module]) -> None:
    teacher = make()
    kinds = {n: type(m) for n, m in teacher.named_modules() if isinstance(m, nn.ReLU | nn.ReLU6)}
    student = ready(teacher)
    swapped = dict(quant_activations(student))
    assert swapped.keys() == kinds.keys() and kinds
    for name, relu in swapped.items():
        assert type(relu) is {nn.ReLU: QuantReLU, nn.ReLU6: QuantReLU6}[kinds[name]] and isinstance(relu, kinds[name])
        assert isinstance(relu.output_quantizer.ranges, Static) and relu.output_quantizer.ranges.observer.updates == 2
        assert coverage(student)[name] == "outputs 4-bit asymmetric per tensor"
    assert not any(isinstance(m, QuantActivation) for m in teacher.modules())
    assert {n for n, _ in student.named_parameters()} == {n for n, _ in teacher.named_parameters()}
    with pytest.raises(ValueError, match="quantized already"):
        quantize_model(student, W4A4)


@pytest.mark.parametrize(("kind", "limit"), [(nn.ReLU, torch.inf), (nn.ReLU6, 6.0)])
@pytest.mark.parametrize("inplace", [False, True])
def test_outputs_are_the_nearest_levels_and_gradients_pass_inside(kind, limit: float, inplace: bool) -> None:
    net = nn.Sequential(kind(inplace=inplace))
    student = quantize_model(net, QuantConfig(activation=OUT))
    relu = student[0]
    assert isinstance(relu, QuantActivation) and isinstance(relu.output_quantizer.ranges, Static)
    relu.output_quantizer.ranges.observing = relu.output_quantizer.ranges.observer
    seen = torch.tensor([[-1.0, 0.5, 3.0]])
    assert torch.equal(student(seen.clone()), seen.clamp(0, limit))
    relu.output_quantizer.ranges.observing = None
    relu.output_quantizer.ranges.freeze()
    x = torch.tensor([-2.0, 0.09, 0.11, 2.95, 9.0], requires_grad=True)
    y = student(x * 1)
    assert torch.allclose(y, torch.tensor([0.0, 0.0, 0.2, 3.0, 3.0]), atol=1e-6)
    y.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0, 1, 1, 1, 0]


def test_a_relu_used_at_several_places_has_one_range() -> None:
    shared = nn.ReLU()
    net = nn.Sequential(nn.Linear(4, 6), shared, nn.Linear(6, 6), shared, nn.Linear(6, 3), shared)
    student = quantize_model(net, W4A4)
    assert [name for name, _ in quant_activations(student)] == ["1"] and student[1] is student[3] is student[5]
    relu = student[1]
    assert isinstance(relu, QuantReLU) and isinstance(relu.output_quantizer.ranges, Static)
    relu.output_quantizer.ranges.observing = relu.output_quantizer.ranges.observer
    student(torch.randn(5, 4))
    assert relu.output_quantizer.ranges.observer.updates == 3
    again = copy.deepcopy(student)
    assert again[1] is again[5] and again[1] is not relu


def test_rules_reach_activations() -> None:
    fine = replace(W4A4, activation=replace(OUT, bits=8))
    rules = (("module.layer1.*", None), ("module.relu", fine), ("module.layer2.0.relu?", QuantConfig(Grid(3))))
    covered = coverage(ready(classifier(cnn()), replace(W4A4, rules=rules)))
    assert covered["module.relu"] == "outputs 8-bit asymmetric per tensor"
    assert covered["module.layer1.0.relu1"] == "left alone: left alone by a rule"
    assert covered["module.layer2.0.relu2"] == "left alone: the configuration has no grid for activations"
    only = QuantConfig(None, rules=(("module.relu", QuantConfig(None, activation=OUT)),))
    covered = coverage(ready(classifier(cnn()), only))
    assert [n for n in covered if "left alone" not in covered[n]] == ["module.relu"]
    assert covered["module.conv1"] == "left alone: the configuration has no grid for weights"


@pytest.mark.parametrize(
    ("field", "teacher", "glob", "kind"),
    [
        ("activation", classifier(cnn()), "*conv*", "module of nn.ReLU or nn.ReLU6"),
        ("attention", vit(), "*q_proj", "attention"),
    ],
)
def test_a_grid_of_a_rule_that_nothing_takes_is_refused(field: str, teacher: nn.Module, glob: str, kind: str) -> None:
    one: Any = {field: OUT}
    ruled = QuantConfig(Grid(4), rules=((glob, QuantConfig(Grid(8), **one)),))
    with pytest.raises(ValueError, match=rf"has a grid for {field} \(.*decides on no {re.escape(kind)}, but on "):
        quantize_model(teacher, ruled)


def test_without_a_grid_for_activations_relus_are_not_spoken_of() -> None:
    plan = plan_of(quantize_model(mlp(), QuantConfig.parse("w4a8")))
    assert set(plan.chosen) | set(plan.left) == {"0", "1", "3"}
    with pytest.raises(ValueError, match="'2' matches no module"):
        quantize_model(mlp(), replace(QuantConfig.parse("w4a8"), rules=(("2", None),)))


class Functional(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return nn.functional.relu(super().forward(input))


@pytest.mark.parametrize("model", [vit(), nn.Sequential(nn.Linear(2, 2), Functional(2, 2), nn.GELU())])
def test_a_model_without_relu_modules_is_refused_by_name(model: nn.Module) -> None:
    for config in (W4A4, QuantConfig(rules=(("*", W4A4),))):
        with pytest.raises(ValueError, match=rf"{type(model).__name__} has no module nn\.ReLU.*functional.*input=Grid"):
            quantize_model(model, config)


@pytest.mark.parametrize(
    "grid", [Grid(8, per="token"), Grid(8), Grid(8, per=4), Grid(2, per="tensor", levels="half")], ids=str
)
def test_grids_that_make_no_sense_for_activations_are_refused(grid: Grid) -> None:
    with pytest.raises(ValueError, match=r"activation is per .*static.*give per='tensor' and integer levels"):
        QuantConfig(activation=grid)


def test_an_activation_grid_goes_through_json() -> None:
    config = replace(W4A4, rules=(("a", replace(W4A4, activation=None)), ("b", None)))
    assert QuantConfig.from_dict(config.to_dict()) == config
    assert QuantConfig.from_dict({"weight": None}).activation is None
    for data, named in (({"activation": 8}, "Grid is 8"), ({"activation": {"per": "token"}}, "per 'token'")):
        with pytest.raises(ValueError, match=named):
            QuantConfig.from_dict(data)


@pytest.mark.parametrize("config", [W4A4, QuantConfig(Grid(4), Grid(8, symmetric=False, per="tensor"))], ids=str)
def test_an_uncalibrated_student_does_not_run_and_says_what_to_do(config: QuantConfig) -> None:
    student = quantize_model(resnet(), config)
    with pytest.raises(ValueError, match=r"run zsaq\.calibrate"):
        student(pixel_values=images())
    with pytest.raises(ValueError, match="saw nothing"):
        calibrate(student, [])


def test_training_moves_weights_below_frozen_ranges() -> None:
    student = ready(resnet())
    relus = [relu.output_quantizer.ranges for _, relu in quant_activations(student)]
    before = [ranges.get_buffer("scale").clone() for ranges in relus]
    student(pixel_values=images(2, 32)).logits.square().sum().backward()
    grads = [p.grad for n, p in student.named_parameters() if "convolution" in n]
    assert grads and all(g is not None and g.abs().sum() > 0 for g in grads)
    assert all(torch.equal(ranges.get_buffer("scale"), old) for ranges, old in zip(relus, before, strict=True))
