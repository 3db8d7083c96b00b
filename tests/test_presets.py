"""What each preset rounds, read off students layer by layer, and codes and scales against the papers' formulas."""

import json
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from vision_toys import cnn, deit, images, mobilenet, regnet, resnet, swin, vit
from zsaq import QuantConfig, calibrate, coverage, quantize_model
from zsaq.quant.layers import quant_activations, quant_layers
from zsaq.quant.quantizer import Quantizer
from zsaq.quant.ranges import Static
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.models import classifier
from zsaq.vision.presets import brecq, preset_config, psaq, uniform

CNNS = {"resnet": resnet, "regnet": regnet, "mobilenet": mobilenet, "cnn": lambda: classifier(cnn())}
SMALL = ImageSpec(4, 32)


def affine(rows: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and zeros of asymmetric min-max rounding of each row [rows, n]; zero is a level."""
    lo, hi = rows.amin(1, keepdim=True).clamp(max=0), rows.amax(1, keepdim=True).clamp(min=0)
    scale = (hi - lo) / (2**bits - 1)
    zero = torch.round(-lo / scale)
    return (torch.round(rows / scale) + zero).clamp(0, 2**bits - 1), scale, zero


def bounds(quantizer: Quantizer) -> tuple[float, float]:
    """What was seen, with zero in it."""
    assert isinstance(quantizer.ranges, Static)
    lo, hi = quantizer.ranges.observer.bounds()
    return min(0.0, lo.item()), max(0.0, hi.item())


def note(saw: dict[str, Tensor], name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
    saw[name] = args[0]


def layers_of(model: nn.Module) -> set[str]:
    return {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


@pytest.mark.parametrize("family", CNNS)
def test_uniform_rounds_every_weight_and_what_every_relu_puts_out(family: str) -> None:
    teacher = CNNS[family]()
    student = calibrate(quantize_model(teacher, uniform("w3a4", teacher)), [{"pixel_values": images(4, 32)}])
    plan = coverage(student)
    assert {n for n in plan if plan[n] == "weights 3-bit asymmetric per channel, inputs float"} == layers_of(teacher)
    relus = {n for n, m in teacher.named_modules() if isinstance(m, nn.ReLU | nn.ReLU6)}
    assert relus and {n for n in plan if plan[n] == "outputs 4-bit asymmetric per tensor"} == relus
    for _, layer in quant_layers(student):
        codes, scale, zero = layer.weight_quantizer.codes(layer.weight.flatten(1))
        expected = affine(layer.weight.flatten(1), 3)
        for value, formula in zip((codes, scale, zero), expected, strict=True):
            assert torch.allclose(value.float(), formula.float(), atol=1e-6)
    for _, relu in quant_activations(student):
        x = torch.randn(2, 3, 5, 5) * 3
        step = bounds(relu.output_quantizer)[1] / 15
        limit = 6 if isinstance(relu, nn.ReLU6) else torch.inf
        assert torch.allclose(relu(x), (x.clamp(0, limit) / step).round().clamp(0, 15) * step, atol=1e-5)


def test_uniform_ranges_cover_what_calibration_saw() -> None:
    teacher, batch = resnet(), {"pixel_values": images(4, 32)}
    student = calibrate(quantize_model(teacher, uniform("w8a8", teacher)), [batch])
    seen = []
    floats = quantize_model(teacher, uniform("w8a8", teacher)).resnet.embedder.embedder.activation
    teacher.resnet.embedder.embedder.activation.register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.no_grad():
        exact, rounded = teacher(**batch).logits, student(**batch).logits
    assert (exact - rounded).abs().max() < 0.15 * exact.std() and not torch.equal(exact, rounded)
    lo, hi = bounds(dict(quant_activations(student))["resnet.embedder.embedder.activation"].output_quantizer)
    assert seen[0].min() == 0 == lo and hi == pytest.approx(seen[0].max().item(), rel=0.1)  # weights of 8 bits differ
    with pytest.raises(ValueError, match=r"zsaq\.calibrate"):
        floats(torch.ones(1))


@pytest.mark.parametrize("family", [*CNNS, "bottleneck"])
def test_brecq_keeps_eight_bits_at_both_ends(family: str) -> None:
    teacher = CNNS[family]() if family in CNNS else resnet(layer_type="bottleneck")
    order = []
    for name in layers_of(teacher):
        teacher.get_submodule(name).register_forward_pre_hook(lambda _, x, name=name: order.append((name, x[0])))
    teacher(pixel_values=images(1, 32))
    first, last = order[0][0], order[-1][0]
    second = {name for name, x in order if x is order[1][1]}
    plan = coverage(quantize_model(teacher, brecq("w2a4", teacher, SMALL)))
    low, high = "weights 2-bit asymmetric per channel, inputs", "weights 8-bit asymmetric per channel, inputs"
    assert plan[first] == f"{high} float"
    assert plan[last] == f"{high} 8-bit asymmetric per tensor"
    assert len(second) == (2 if family == "regnet" else 1)  # regnet's shortcut reads what the block's first layer reads
    for name in second:
        assert plan[name] == f"{low} 8-bit asymmetric per tensor"
    for name in layers_of(teacher) - {first, last} - second:
        assert plan[name] == f"{low} 4-bit asymmetric per tensor"


@pytest.mark.parametrize(("make", "size"), [(vit, 16), (deit, 16), (swin, 32)])
def test_psaq_rounds_weights_and_inputs_of_every_layer(make, size: int) -> None:
    teacher, batch = make(), {"pixel_values": images(4, size)}
    student = calibrate(quantize_model(teacher, psaq("w4a8", teacher)), [batch])
    plan = coverage(student)
    grid = "weights 4-bit per channel, inputs 8-bit asymmetric per tensor"
    assert {n for n in plan if plan[n] == grid} == layers_of(teacher) and any("classifier" in n for n in plan)
    saw: dict[str, Tensor] = {}
    for name, layer in quant_layers(student):
        layer.register_forward_pre_hook(partial(note, saw, name))
    with torch.no_grad():
        student(**batch)
    for name, layer in quant_layers(student):
        rows = layer.weight.flatten(1)
        scale = rows.abs().amax(1, keepdim=True) / 7
        assert torch.allclose(layer.dequantized(), (rows / scale).round().clamp(-8, 7) * scale, atol=1e-6)
        assert layer.input_quantizer is not None
        lo, hi = bounds(layer.input_quantizer)
        step = (hi - lo) / 255
        zero = round(-lo / step)
        expected = ((saw[name] / step).add(zero).round().clamp(0, 255) - zero) * step
        assert torch.allclose(layer.inputs(saw[name]), expected, atol=step * 1.01)
        assert (layer.inputs(saw[name]) - expected).abs().mean() < step * 0.01


@pytest.mark.parametrize("preset", [uniform, brecq, psaq])
def test_a_preset_is_plain_data_and_other_texts_are_refused(preset) -> None:
    teacher = resnet()
    config = preset("W4A4", teacher)
    assert QuantConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    for text in ("w4", "w4a16", "w2a4-ternary", "w4a4g8", "w1a4", ""):
        with pytest.raises(ValueError, match="no text of a preset"):
            preset(text, teacher)


def test_uniform_on_a_transformer_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"what ReLUs put out.*ViTForImageClassification.*preset brecq or psaq"):
        uniform("w4a4", vit())


@pytest.mark.parametrize("preset", ["brecq", "psaq", "uniform"])
@pytest.mark.parametrize("net", [nn.Sequential(nn.ReLU(), nn.Flatten()), nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())])
def test_a_net_without_layers_is_told(net: nn.Module, preset: str) -> None:
    with pytest.raises(ValueError, match=r"Sequential has no layer to round; give"):
        preset_config("w4a4", preset, classifier(net))
    with pytest.raises(ValueError, match=r"Sequential has no layer to round; give"):
        {"brecq": brecq, "psaq": psaq, "uniform": uniform}[preset]("w4a4", classifier(net))
