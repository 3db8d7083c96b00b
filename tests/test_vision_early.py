"""What cannot be is refused before images are made, which takes minutes."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import zsaq
from vision_toys import CLASSES, Cnn, cnn, spread, vit
from zsaq.train.reconstruction import reconstruct
from zsaq.vision.choice import auto
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.job import ImageJob
from zsaq.vision.methods import METHODS
from zsaq.vision.models import classifier
from zsaq.vision.presets import preset_config

SPEC = ImageSpec(classes=CLASSES, size=32)
FITTED = [name for name in METHODS if name.startswith(("onepass", "genie", "sadag")) and "psaq" not in name]
PASSES = [name for name in FITTED if name.startswith("onepass")]
HEADLESS = [name for name in FITTED if "head" not in METHODS[name].needs]


@pytest.fixture(autouse=True)
def no_image_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def once(*_: Any) -> None:
        raise AssertionError("images are made")

    monkeypatch.setattr(ImageJob, "once", once)


def quantize(teacher: nn.Module, method: str, config: Any = "w4a4", **options: Any) -> None:
    real = None if METHODS[method].zero_shot else lambda: torch.zeros(8, 3, 32, 32)
    zsaq.quantize(teacher, config, method=method, spec=SPEC, real=real, effort="light", **options)


class Aside(Cnn):
    """One layer that no image reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.aside = nn.Conv2d(8, 8, 3)


def shared() -> Any:
    teacher: Any = cnn()
    teacher.layer1[0].conv2.weight = teacher.layer1[0].conv1.weight
    return teacher


@pytest.mark.parametrize("method", FITTED)
def test_layers_of_one_weight(method: str) -> None:
    with pytest.raises(ValueError, match=r"layer1\.0\.conv1 and .*layer1\.0\.conv2 share a weight"):
        quantize(shared(), method)


def test_auto_rounds_layers_of_one_weight_to_nearest() -> None:
    transformer = vit()
    first, second = [module for module in transformer.modules() if isinstance(module, nn.Linear)][:2]
    second.weight = first.weight
    assert [auto(shared(), (4, 4)), auto(transformer, (4, 4)), auto(transformer, (8, 8))] == ["zeroq", "psaq", "psaq"]


def test_blocks_with_layers_of_one_weight() -> None:
    teacher = classifier(shared())
    student = zsaq.quantize_model(teacher, preset_config("w4a4", "brecq", teacher, SPEC))
    batch = {"pixel_values": torch.randn(4, 3, 32, 32)}
    with pytest.raises(ValueError, match=r"conv1 and .*conv2 share a weight, which cannot be rounded for both"):
        reconstruct(student, teacher, [batch], [("module.layer1", teacher.get_submodule("module.layer1"))], steps=1)


@pytest.mark.parametrize("method", ["rtn-noise", "zeroq", *FITTED])
def test_a_static_range_that_no_image_reaches(method: str) -> None:
    with pytest.raises(ValueError, match=r"aside: no image reaches them.*rules=\(\(\"module\.aside\", None\),\)"):
        quantize(spread(Aside()), method)


@pytest.mark.parametrize("method", PASSES)
def test_weights_that_no_image_reaches(method: str) -> None:
    with pytest.raises(ValueError, match="aside: no image reaches them"):
        quantize(spread(Aside()), method, zsaq.QuantConfig.parse("w4a16"))


@pytest.mark.parametrize("method", [name for name in PASSES if "blocks" not in name])
@pytest.mark.parametrize("make", [shared, lambda: spread(Aside())])
def test_a_pass_that_rounds_to_nearest_takes_them(method: str, make: Any) -> None:
    with pytest.raises(AssertionError, match="images are made"):
        quantize(make(), method, preset="uniform")


class Unnormed(Cnn):
    """BatchNorms whose forwards are called by name, all or all but the first."""

    def __init__(self, all_of_them: bool) -> None:
        super().__init__()
        self.layer1, self.layer2 = nn.Sequential(), nn.Sequential(nn.Conv2d(8, 16, 3))
        self.layer2.add_module("norm", Past(16))
        self.bn1 = Past(8) if all_of_them else nn.BatchNorm2d(8)


class Past(nn.BatchNorm2d):
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward(x)


@pytest.mark.parametrize("method", ["zeroq", "onepass", "genie", "synq-own", "texq", "gdfq"])
def test_batch_norms_that_no_image_reaches(method: str) -> None:
    with pytest.raises(ValueError, match=r"bn1, module\.layer2\.norm: no image reaches these.*self\.norm\(x\).*-pink$"):
        quantize(Unnormed(True).eval(), method)


def test_batch_norms_that_no_image_reaches_beside_others_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AssertionError, match="images are made"):
        quantize(Unnormed(False).eval(), "zeroq")
    told = "module.layer2.norm: no image reaches these BatchNorms, whose statistics are left out"
    assert told in capsys.readouterr().err


class Bright(Cnn):
    """A layer that a black image does not reach, and where asked one whose forward is called by name."""

    def __init__(self, by_name: bool = False) -> None:
        super().__init__()
        self.bright, self.by_name = nn.Linear(3, CLASSES), by_name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer2(self.layer1(self.relu(self.bn1(self.conv1(x)))))
        y = (self.linear.forward if self.by_name else self.linear)(self.pool(y).flatten(1))
        return y + self.bright(x.mean((2, 3))) if x.abs().max() > 0 else y


@pytest.mark.parametrize("method", ["rtn-noise", "zeroq", *HEADLESS])
def test_layers_that_are_reached_in_their_own_way(method: str) -> None:
    if method in FITTED:
        with pytest.raises(ValueError, match=r"module.linear: their forward is called, .* call the layer, layer\(x\)"):
            quantize(spread(Bright(by_name=True)), method)
    teacher = spread(Bright(by_name=method not in FITTED)).train()
    before = copy.deepcopy(teacher.state_dict())
    with pytest.raises(AssertionError, match="images are made"):
        quantize(teacher, method)
    assert not any("forward" in vars(module) for module in teacher.modules())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_levels_that_are_not_even_cannot_be_learned() -> None:
    config = zsaq.QuantConfig(zsaq.Grid(4, levels="nf4"))
    with pytest.raises(ValueError, match="conv1: rounding up or down is learned on even levels, and nf4 ones are not"):
        quantize(cnn(), "genie-noise", config)


KL = ("onepass-kl", "onepass-kl-real", "onepass-blocks-kl", "onepass-blocks-kl-real")
BLOCKS = ("onepass-blocks", "onepass-blocks-real")


@pytest.mark.parametrize(
    ("method", "count"), [*((name, "images") for name in KL + BLOCKS), *((name, "batch_size") for name in KL)]
)
def test_mixtures_of_one_image(method: str, count: str) -> None:
    with pytest.raises(ValueError, match=f"{count} is 1; a mixture is of two images: give at least 2"):
        quantize(cnn(), method, **{count: 1})


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("synq", {"cutoff": 0}, "cutoff is 0, which has no meaning here: give a positive number"),
        ("synq", {"cutoff": 1.5}, "cutoff is 1.5, a share of a whole: give at most 1"),
        ("synq", {"difficulty": 2}, "difficulty is 2, a share of a whole"),
        (
            "genie-synq",
            {"difficulty": "x"},
            "difficulty is 'x'; give a finite number of at least 0, or none for its own",
        ),
        ("hast", {"epsilon": 0}, "epsilon is 0"),
        ("synq", {"epsilon": 0.0}, "epsilon is 0"),
        ("plf", {"lowest": 1.1}, "lowest is 1.1, a share of a whole"),
        ("sadag", {"radius": 0.0}, "radius is 0"),
        ("sadag", {"group": 0}, "group is 0"),
        ("sadag", {"decay_every": 0}, "decay_every is 0"),
        ("sadag", {"decay_every": 0.5}, "decay_every is 0.5; give an integer"),
        ("qimera", {"mix": 0}, "mix is 0"),
        ("genie", {"lr_bits": 0}, "lr_bits is 0, with which nothing is learned"),
        ("genie", {"lr_bits": 1e39}, r"lr_bits is 1e\+39, which float32 does not hold: give 1e-38 to 1e38"),
        ("onepass", {"damping": 10**400}, r"damping is 10{19}, which float32 does not hold"),
        ("synq", {"maps": 1e-320}, "maps is 1e-320, which float32 does not hold"),
        ("qimera", {"from_teacher": 1}, "from_teacher is 1; give true or false, or none for its own"),
        ("arc", {"cells": 1}, r"cells is 1; give zsaq\.vision\.papers\.arc\.Cells, or none for its own"),
    ],
)
def test_settings_that_have_no_meaning(method: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        quantize(cnn(), method, **options)


def test_what_is_left_in_floats_need_not_be_reached() -> None:
    teacher = spread(Aside())
    config = preset_config("w4a4", "brecq", classifier(teacher), SPEC)
    config = zsaq.QuantConfig(config.weight, config.input, rules=(("module.aside", None), *config.rules))
    with pytest.raises(AssertionError, match="images are made"):
        quantize(teacher, "onepass", config)


def test_the_teacher_is_as_it_was() -> None:
    teacher = spread(Aside()).train()
    with pytest.raises(ValueError, match="no image reaches them"):
        quantize(teacher, "onepass")
    assert teacher.training and not any(module._forward_pre_hooks for module in teacher.modules())


@pytest.mark.parametrize("method", ["rtn-noise", "onepass", "onepass-kl", "genie", "synq", "gdfq"])
@pytest.mark.parametrize(("per", "shared"), [("token", "token"), (4, "group of 4")])
def test_inputs_of_a_convolution_have_one_scale(method: str, per: Any, shared: str) -> None:
    config = zsaq.QuantConfig(zsaq.Grid(4), zsaq.Grid(8, per=per))
    with pytest.raises(ValueError, match=f"conv1: this convolution's input per {shared} would have scales for each"):
        quantize(cnn(), method, config)


@pytest.mark.parametrize("method", [*FITTED, "synq", "hast", "gdfq", "gdfq-ait", "rtn-noise"])
def test_blocks_that_cannot_be_computed_again(method: str) -> None:
    with pytest.raises(ValueError, match="no blocks that can be computed again: leave recompute off"):
        quantize(cnn(), method, loop=zsaq.Loop(recompute=True))


@pytest.mark.parametrize("method", ["onepass-kl", "onepass-blocks-kl", "synq", "hast", "gdfq", "gdfq-ait", "gdfq-kl"])
def test_divergence_of_one_class(method: str) -> None:
    with pytest.raises(ValueError, match="Cnn answers one number, of which KL is always 0: take a method that learns"):
        zsaq.quantize(spread(Cnn(1)), "w4a4", method=method, spec=ImageSpec(1, 32), effort="light")


@pytest.mark.parametrize("method", FITTED)
def test_a_weight_that_no_image_reaches(method: str) -> None:
    with pytest.raises(ValueError, match=r"aside: no image reaches them.*rules=\(\(\"module\.aside\", None\),\)"):
        quantize(spread(Aside()), method, zsaq.QuantConfig(zsaq.Grid(4)))


@pytest.mark.parametrize("method", ["genie", "genie-pyramid", "sadag", "genie-synq"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_what_is_learned_is_float32(method: str, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=r"the weights of .* are not float32 and would not hold.*use \.float\(\)"):
        quantize(cnn().to(dtype), method)


@pytest.mark.parametrize("method", ["onepass", "onepass-kl", "onepass-blocks", "onepass-blocks-kl", "genie"])
def test_a_configuration_that_rounds_no_layer(method: str) -> None:
    config = zsaq.QuantConfig(None, activation=zsaq.Grid(4, symmetric=False, per="tensor"))
    with pytest.raises(ValueError, match="the configuration rounds no layer, which this method fits: give it a grid"):
        quantize(cnn(), method, config)
