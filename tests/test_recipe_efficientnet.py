"""EfficientNet-Lite0 of the recipes: against a plain forward pass, and quantized, saved, loaded, exported."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel

from vision_toys import images

sys.path.insert(0, str(Path(__file__).parent.parent / "recipes"))

from examples import efficientnet, imagenet
from examples.subjects import photos

from zsaq import calibrate, export, load, quantize, quantize_model, save
from zsaq.deploy.parity import verify
from zsaq.io.teacher import kind_of
from zsaq.quant.layers import quant_activations, quant_layers
from zsaq.vision import presets
from zsaq.vision.heads import head
from zsaq.vision.models import batch_norms, blocks, layers

SIZE = 32
State = dict[str, Tensor]


class Unknown(PreTrainedModel):
    """Of no auto class. A bare PreTrainedModel would leave what transformers remembers of it to every model made later:
    RoBERTa with a head was refused then."""


@pytest.fixture(scope="module")
def state() -> State:
    return state_of(0)


def state_of(lite: int) -> State:
    """Random weights under the file's names, 7 classes; the size of the images is in none of them."""
    torch.manual_seed(0)
    config = efficientnet.EfficientNetLiteConfig(num_labels=7, lite=lite)  # pyright: ignore[reportCallIssue]
    net = efficientnet.EfficientNetLiteForImageClassification(config)
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
            module.bias.data.normal_(0.3, 0.3)
    named = {name.removeprefix("net."): value for name, value in net.state_dict().items()}
    return {
        ".".join(p if p.isdigit() or i == n else f"_{p}" for i, p in enumerate(parts)): value
        for name, value in named.items()
        for parts in [name.split(".")]
        for n in [len(parts) - 1]
    } | {"_blocks.0._bn1.num_batches_tracked": torch.tensor(7)}


REPEATS = {0: (1, 2, 2, 3, 3, 4, 1), 1: (1, 3, 3, 4, 4, 5, 1), 2: (1, 3, 3, 4, 4, 5, 1)}
REPEATS |= {3: (1, 3, 3, 5, 5, 6, 1), 4: (1, 4, 4, 6, 6, 8, 1)}
CHANNELS = {0: (16, 24, 40, 80, 112, 192, 320), 1: (16, 24, 40, 80, 112, 192, 320)}
CHANNELS |= {2: (16, 24, 48, 88, 120, 208, 352), 3: (24, 32, 48, 96, 136, 232, 384)}
CHANNELS |= {4: (24, 32, 56, 112, 160, 272, 448)}


def plain(state: State, x: Tensor, lite: int = 0) -> Tensor:
    """Table 1 of Tan and Le 2019 (expansion, repeats, stride, kernel) on the file's names, TensorFlow's padding."""

    def layer(x: Tensor, name: str, norm: str, stride: int = 1, act: bool = True) -> Tensor:
        weight = state[f"{name}.weight"]
        kernel, groups = weight.shape[-1], x.shape[1] if weight.shape[1] == 1 else 1
        short = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[:1:-1]]
        x = F.pad(x, [part for total in short for part in (total // 2, total - total // 2)])
        mean, variance, gain, bias = (
            state[f"{norm}.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias")
        )
        x = F.batch_norm(F.conv2d(x, weight, None, stride, 0, 1, groups), mean, variance, gain, bias, eps=1e-3)
        return F.relu6(x) if act else x

    x, number = layer(x, "_conv_stem", "_bn0", 2), 0
    for expansion, repeats, first in zip((1, 6, 6, 6, 6, 6, 6), REPEATS[lite], (1, 2, 2, 2, 1, 2, 1), strict=True):
        for repeat in range(repeats):
            at, inside = f"_blocks.{number}.", x
            if expansion > 1:
                inside = layer(inside, f"{at}_expand_conv", f"{at}_bn0")
            inside = layer(inside, f"{at}_depthwise_conv", f"{at}_bn1", 1 if repeat else first)
            inside = layer(inside, f"{at}_project_conv", f"{at}_bn2", act=False)
            x, number = x + inside if repeat else inside, number + 1
    x = layer(x, "_conv_head", "_bn1").mean((2, 3))
    return F.linear(x, state["_fc.weight"], state["_fc.bias"])


@pytest.mark.parametrize("size", [32, 50, 71])
def test_the_loaded_net_is_the_plain_one(state: State, size: int, tmp_path: Path) -> None:
    save_file(state, tmp_path / "net.safetensors")
    net, x = efficientnet.load_efficientnet(tmp_path / "net.safetensors", size), torch.randn(2, 3, size, size)
    with torch.no_grad():
        logits, wanted = net(pixel_values=x).logits, plain(state, x)
    assert not net.training and wanted.std() > 1e-2
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_a_larger_net_is_the_plain_one_and_comes_back(tmp_path: Path) -> None:
    larger, x = state_of(2), torch.randn(2, 3, SIZE, SIZE)
    save_file(larger, tmp_path / "net.safetensors")
    net = imagenet.NETS["lite2"].load(tmp_path / "net.safetensors", SIZE)
    net.save_pretrained(tmp_path / "saved")
    back = efficientnet.EfficientNetLiteForImageClassification.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        logits, wanted = net(pixel_values=x).logits, plain(larger, x, 2)
        torch.testing.assert_close(back(pixel_values=x).logits, logits)
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    with pytest.raises(ValueError, match="give EfficientNet-Lite1"):
        efficientnet.load_efficientnet(tmp_path / "net.safetensors", SIZE, 1)


@pytest.mark.parametrize("lite", CHANNELS)
def test_channels_and_repeats_are_those_published(lite: int) -> None:
    stages = efficientnet.stages(lite)
    assert (tuple(stage[1] for stage in stages), tuple(stage[2] for stage in stages)) == (CHANNELS[lite], REPEATS[lite])


@pytest.mark.parametrize("lite", [-1, 5, True, "0", 1.0])
def test_a_number_that_does_not_exist_is_refused(lite: Any) -> None:
    with pytest.raises(ValueError, match=r"lite is .*; give 0 to 4"):
        efficientnet.stages(lite)


@pytest.mark.parametrize("side", [0, -3, "224", 32.0])
def test_a_side_of_images_that_is_none_is_refused(side: Any) -> None:
    config = efficientnet.EfficientNetLiteConfig(image_size=side)
    with pytest.raises(ValueError, match=r"image_size is .*; give the side"):
        efficientnet.EfficientNetLiteForImageClassification(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_blocks.3._expand_conv.weight": None}, "lacks .*net.blocks.3.expand_conv.weight"),
        ({"_blocks.16._bn1.weight": torch.zeros(8)}, "has .*net.blocks.16.bn1.weight.* too much"),
        ({"_bn1.weight": torch.zeros(12)}, r"net.bn1.weight \[12\]"),
        ({"_fc.weight": None}, "give EfficientNet-Lite0"),
    ],
)  # fmt: skip
def test_another_state_dict_is_refused(
    state: State, change: dict[str, Tensor | None], message: str, tmp_path: Path
) -> None:
    changed = {name: value for name, value in (state | change).items() if value is not None}
    save_file(changed, tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match=message):
        efficientnet.load_efficientnet(tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match="is no file"):
        efficientnet.load_efficientnet(tmp_path / "none.safetensors")


def student_of(state: State, preset: Any, folder: Path) -> Any:
    save_file(state, folder / "net.safetensors")
    subject = photos(imagenet.NETS["lite0"], str(folder / "net.safetensors"), [], size=SIZE)
    teacher, spec = subject["model"], subject["spec"]
    assert presets.mostly_relus(teacher)
    assert len(blocks(teacher)) == 19 and len(batch_norms(teacher)) == 49 and head(teacher) is teacher.fc
    config = presets.preset_config("w4a4", preset, teacher, spec)
    student = calibrate(quantize_model(teacher, config), [{"pixel_values": images(4, SIZE)}])
    save(student, folder / "student", subject["processor"])
    return student


@pytest.mark.parametrize(("preset", "rounding"), [("brecq", 0), ("uniform", 33)])
def test_a_student_has_all_layers_and_comes_back(state: State, preset: str, rounding: int, tmp_path: Path) -> None:
    student = student_of(state, preset, tmp_path)
    assert len(list(quant_layers(student))) == len(layers(student)) == 50
    assert len(list(quant_activations(student))) == rounding
    again, x = load(tmp_path / "student"), images(2, SIZE, seed=1)
    with torch.no_grad():
        assert torch.equal(again(pixel_values=x).logits, student(pixel_values=x).logits)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["brecq", "uniform"])
def test_a_student_agrees_in_onnx_runtime(state: State, preset: str, tmp_path: Path) -> None:
    student_of(state, preset, tmp_path)
    export(tmp_path / "student", "onnx")
    assert verify(tmp_path / "student", write=False)["agrees"]


def test_normalisation_is_the_nets_own_unless_told() -> None:
    net = imagenet.NETS["lite0"]
    assert list(net.processor(128).image_mean) == [127 / 255] * 3
    assert list(net.with_([0.4, 0.5, 0.6], None).processor(128).image_mean) == [0.4, 0.5, 0.6]
    for mean, deviation in (
        ([0.5], None),
        (None, [0.2, 0.0, 0.2]),
        (None, [math.nan, 1.0, 1.0]),
        ([1.0, math.nan, 0.0], None),
    ):
        with pytest.raises(ValueError, match="three finite numbers each"):
            net.with_(mean, deviation)


def test_a_registered_class_of_ones_own_is_quantized_as_what_it_is(state: State, tmp_path: Path) -> None:
    save_file(state, tmp_path / "net.safetensors")
    subject = photos(imagenet.NETS["lite0"], str(tmp_path / "net.safetensors"), [], size=SIZE)
    given = {name: subject[name] for name in ("processor", "spec")}
    student = quantize(subject["model"], "w8a8", method="rtn-noise", images=2, **given)
    assert student.zsaq.results.method == "rtn-noise"
    assert kind_of(subject["model"]) == "image" and kind_of(Unknown(PreTrainedConfig())) == "other"
