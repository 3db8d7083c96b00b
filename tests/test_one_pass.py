"""One pass: compensation of convolutions, corrections of BatchNorms and biases, steps that are searched in order."""

import copy
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vision_toys import cnn, convnext, images, resnet, vit
from zsaq import Grid, ImageSpec, QuantConfig, calibrate, compensate, correct_batch_norm, one_pass, quantize_model
from zsaq.quant.layers import QuantConv2d, quant_layers
from zsaq.quant.ranges import static_ranges
from zsaq.train.compensation import Factor, GroupedFactor, gptq_columns, moment
from zsaq.train.optim import NotFinite
from zsaq.train.pair import run_model
from zsaq.vision.models import blocks, classifier
from zsaq.vision.presets import preset_config

KINDS: dict[str, dict[str, Any]] = {
    "plain": {"padding": 1},
    "strided": {"stride": 2, "padding": (1, 0)},
    "dilated": {"dilation": 2},
    "grouped": {"groups": 2, "padding": 1},
    "depthwise": {"groups": 8, "padding": 1, "stride": (1, 2)},
    "same": {"padding": "same", "groups": 4},
    "reflected": {"padding": 2, "padding_mode": "reflect"},
    "point": {"kernel_size": 1},
}


def convolution(kind: str, seed: int = 0) -> tuple[QuantConv2d, nn.Conv2d, Tensor]:
    """A 3-bit layer, what it was, and images whose pixels tell of each other."""
    torch.manual_seed(seed)
    layer = nn.Conv2d(8, 16, **{"kernel_size": 3, **KINDS[kind]})
    x = F.avg_pool2d(torch.randn(6, 8, 12, 12), 3, 1, 1) + torch.randn(6, 1, 1, 1)
    student = quantize_model(nn.Sequential(layer), QuantConfig(Grid(3, symmetric=False), None))
    found = next(each for _, each in quant_layers(student))
    assert isinstance(found, QuantConv2d)
    return found, layer, x


@pytest.mark.parametrize("kind", KINDS)
def test_the_moment_is_that_of_what_a_convolution_sees(kind: str) -> None:
    layer, plain, x = convolution(kind)
    total, rows = moment(layer, x).double(), plain.weight.detach().double().flatten(1)
    assert total.shape == (layer.groups, rows.shape[1], rows.shape[1])
    each = rows.unflatten(0, (layer.groups, -1))
    with torch.no_grad():
        answers = plain.double()(x.double()) - cast(Tensor, plain.bias).double()[:, None, None]
    torch.testing.assert_close(((each @ total) * each).sum(), answers.square().sum(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_compensated_convolution_answers_nearer(kind: str) -> None:
    layer, plain, x = convolution(kind)
    with torch.no_grad():
        before = (layer(x) - plain(x)).square().sum()
        student = nn.Sequential(layer)
        compensate(classifier(student), [{"pixel_values": x}], [("module.0", layer)])
        assert (layer(x) - plain(x)).square().sum() < 0.6 * before
    codes, scale, _ = layer.weight_quantizer.codes(layer.rows().flatten(1))
    again = layer.weight_quantizer.codes(layer.dequantized())[0]
    assert torch.equal(codes, again) and scale.isfinite().all()


@pytest.mark.parametrize("per", ["channel", 3])
def test_groups_at_once_are_groups_one_by_one(per: Any) -> None:
    torch.manual_seed(1)
    x, weight, grid = torch.randn(3, 50, 9).double(), torch.randn(6, 9), Grid(3, symmetric=False, per=per)
    x = x @ torch.randn(9, 9).double()
    total = x.mT @ x
    scale, zero = (
        torch.rand(6, 1 if per == "channel" else 3) / 2 + 0.1,
        torch.full((6, 1 if per == "channel" else 3), 3.0),
    )
    factor = GroupedFactor.of(total.clone(), 0.01)
    rounded, latent, miss = factor.columns(weight, scale, zero, grid)
    missed = 0.0
    for i in range(3):
        rows = slice(2 * i, 2 * i + 2)
        one = Factor.of(total[i].clone(), 0.01)
        each = gptq_columns(weight[rows], one, scale[rows], zero[rows], grid)
        torch.testing.assert_close(rounded[rows], each[0])
        torch.testing.assert_close(latent[rows], each[1], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(factor.cost[i], (one.cost / one.cost.mean()), rtol=1e-3, atol=1e-4)
        missed += each[2]
    assert miss == pytest.approx(missed, rel=1e-3)


@torch.no_grad()
def miss(student: nn.Module, teacher: nn.Module, batch: dict[str, Tensor]) -> float:
    return float((run_model(student, batch).answer - run_model(teacher, batch).answer).square().mean())


def net() -> nn.Module:
    torch.manual_seed(0)
    teacher = cnn()
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            cast(Tensor, module.running_mean).uniform_(-0.5, 0.5)
            cast(Tensor, module.running_var).uniform_(0.5, 2)
    return teacher


def test_batch_norms_take_the_ratio_of_what_both_read() -> None:
    teacher = classifier(net().eval())
    batch = {"pixel_values": images(5, 16)}
    student = calibrate(quantize_model(teacher, preset_config("w2a4", "uniform", teacher)), [batch])
    name, first = next((n, m) for n, m in student.named_modules() if isinstance(m, nn.BatchNorm2d))
    seen: dict[str, Tensor] = {}

    def hear(which: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor]) -> None:
            seen[which] = args[0].double()

        return hook

    for which, model in (("teacher", teacher), ("student", student)):
        handle = model.get_submodule(name).register_forward_pre_hook(hear(which))
        run_model(model, batch)
        handle.remove()
    before = copy.deepcopy(first)
    correct_batch_norm(student, teacher, [batch])
    v_s, v_t = (seen[each].var((0, 2, 3), correction=0) for each in ("student", "teacher"))
    m_s, m_t = (seen[each].mean((0, 2, 3)) for each in ("student", "teacher"))
    r = ((v_s + before.eps) / (v_t + before.eps)).clamp(0.05, 20)
    assert isinstance(first, nn.BatchNorm2d) and before.running_var is not None and before.running_mean is not None
    assert first.running_var is not None and first.running_mean is not None
    expected = (before.running_var + before.eps) * r - before.eps
    torch.testing.assert_close(first.running_var.double(), expected, rtol=1e-4, atol=1e-6)
    expected = m_s - (m_t - before.running_mean) * r.sqrt()
    torch.testing.assert_close(first.running_mean.double(), expected, rtol=1e-4, atol=1e-5)
    again = copy.deepcopy(teacher)
    correct_batch_norm(again, teacher, [batch])
    for one, other in zip(again.buffers(), teacher.buffers(), strict=True):
        torch.testing.assert_close(one, other)  # the teacher itself has nothing to correct


@pytest.mark.parametrize("make", [resnet, net, vit, convnext])
def test_a_student_of_one_pass_is_nearer_than_one_of_rounding(make: Any) -> None:
    torch.manual_seed(0)
    teacher, batch = classifier(make().eval()), {"pixel_values": images(24, 16 if make is vit else 32)}
    batch["pixel_values"] = F.avg_pool2d(batch["pixel_values"], 5, 1, 2) * 3
    config = preset_config("w3a8", "brecq", teacher, spec=ImageSpec(5, batch["pixel_values"].shape[-1]))
    rounded = calibrate(quantize_model(teacher, config), [batch])
    fitted = one_pass(quantize_model(teacher, config), teacher, [batch])
    assert len(static_ranges(fitted)) == len(static_ranges(rounded))
    assert miss(fitted, teacher, batch) < 0.5 * miss(rounded, teacher, batch)


def test_biases_make_up_for_what_answers_lack() -> None:
    torch.manual_seed(0)
    teacher = classifier(
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    )
    batch = {"pixel_values": images(8, 16).relu()}
    student = one_pass(quantize_model(teacher, QuantConfig(Grid(2), None)), teacher, [batch])
    answers = [run_model(each, batch).answer.mean(0) for each in (student, teacher)]
    torch.testing.assert_close(*answers, rtol=1e-4, atol=1e-5)


def test_weights_of_min_max_ranges_stay_and_batches_are_one() -> None:
    teacher = classifier(net().eval())
    config, pixels = preset_config("w4a4", "uniform", teacher), images(6, 16)
    before = quantize_model(teacher, config)
    after = one_pass(copy.deepcopy(before), teacher, [{"pixel_values": pixels}])
    parts = one_pass(copy.deepcopy(before), teacher, [{"pixel_values": part} for part in pixels.split(2)])
    for (_, one), (_, other) in zip(quant_layers(before), quant_layers(after), strict=True):
        assert torch.equal(one.weight, other.weight)
    assert all(map(torch.equal, after.state_dict().values(), parts.state_dict().values()))


def test_a_range_of_two_places_is_searched_on_both() -> None:
    relu = nn.ReLU()
    net = nn.Sequential(nn.Conv2d(3, 4, 1), relu, nn.Conv2d(4, 4, 1), relu, nn.Flatten())
    with torch.no_grad():
        cast(Tensor, net[0].weight).mul_(0.01)
        cast(Tensor, net[2].weight).mul_(1000)
    teacher = classifier(net)
    student = quantize_model(teacher, preset_config("w8a8", "uniform", teacher))
    with pytest.warns(UserWarning, match=r"calls module.1 at several places"):
        one_pass(student, teacher, [{"pixel_values": images(4, 8)}])
    (held,) = static_ranges(student)
    top = net(images(4, 8)).max()
    assert 0.3 * top < 255 * held.scale < 1.1 * top


def test_bad_input_is_told() -> None:
    teacher = classifier(net().eval())
    student = quantize_model(teacher, preset_config("w4a4", "brecq", teacher))
    batch = {"pixel_values": images(2, 16)}
    for damping in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="damping"):
            one_pass(student, teacher, [batch], damping=damping)
    with pytest.raises(ValueError, match="0 batches"):
        one_pass(student, teacher, [])
    with pytest.raises(ValueError, match="samples of 2 kinds"):
        one_pass(student, teacher, [batch, {"pixel_values": images(2, 8)}])
    with pytest.raises(NotFinite, match="not finite"):
        one_pass(student, teacher, [{"pixel_values": images(2, 16) * float("nan")}])
    with pytest.raises(ValueError, match=r"no BatchNorm.*one_pass"):
        correct_batch_norm(student, classifier(vit()), [{"pixel_values": images(2, 16)}])
    with pytest.raises(ValueError, match="bfloat16"):
        one_pass(quantize_model(teacher, preset_config("w4a4", "brecq", teacher)).bfloat16(), teacher, [batch])


def test_blocks_of_convolutions_are_compensated_in_order() -> None:
    teacher = classifier(resnet())
    batch = {"pixel_values": images(8, 32)}
    student = calibrate(quantize_model(teacher, preset_config("w3a8", "brecq", teacher)), [batch])
    before = miss(student, teacher, batch)
    assert miss(compensate(student, [batch], blocks(student)), teacher, batch) < before
