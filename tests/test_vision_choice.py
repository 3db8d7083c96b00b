"""What suits a teacher: methods by its kind, the one chosen by its kind and bits, and presets."""

from typing import Any

import pytest
from torch import nn
from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

import zsaq
from vision_toys import CLASSES, TRANSFORMER, cnn, convnext, deit, names, resnet, swin, vit
from zsaq.vision.choice import auto, check_needs, preset_for, suits
from zsaq.vision.methods import METHODS
from zsaq.vision.presets import preset_config


def test_what_suits_a_teacher() -> None:
    convolutional, plain, transformer, neither = (set(suits(t)) for t in (resnet(), cnn(), vit(), convnext()))
    anything = {"rtn-noise", "rtn-real", "synq-noise", "synq-real", "genie-noise", "genie-real", "distill"}
    anything |= {"onepass-noise", "onepass-pink", "onepass-real", "onepass-blocks-real", "onepass-kl-real"}
    anything |= {"onepass-blocks-kl-real"}
    assert neither == anything == convolutional & transformer and convolutional == plain
    assert convolutional | transformer == set(METHODS) and transformer == set(suits(swin())) == set(suits(deit()))
    assert transformer - anything == {
        "psaq",
        "psaq-learned",
        "psaq-noise",
        "psaq-real",
        "psaq-sadag",
        "synq-psaq",
        "onepass-psaq",
    }
    for name in METHODS:
        if name not in transformer:
            with pytest.raises(ValueError, match=f"ViTFor.* does not suit {name}, which needs BatchNorm.*psaq-learned"):
                check_needs(METHODS[name], vit())
        else:
            check_needs(METHODS[name], vit())
    headless = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert {"intraq", "qimera", "sadag"} & set(suits(headless)) == set() and "genie" in suits(headless)
    with pytest.raises(ValueError, match="Sequential does not suit intraq, which needs BatchNorm and a linear head"):
        check_needs(METHODS["intraq"], headless)
    two = DeiTForImageClassificationWithTeacher(DeiTConfig(**TRANSFORMER, **names(CLASSES)))
    assert transformer - set(suits(two)) == {"psaq-sadag"}


@pytest.mark.parametrize(
    ("make", "low", "high"),
    [(resnet, "onepass", "onepass"), (cnn, "onepass", "onepass"), (vit, "psaq-learned", "psaq"),
     (swin, "psaq-learned", "psaq"), (convnext, "onepass-pink", "onepass-pink")],
)  # fmt: skip
def test_auto_is_a_rule_of_kind_and_bits(make: Any, low: str, high: str) -> None:
    teacher = make()
    assert [auto(teacher, bits) for bits in ((4, 4), (4, 8), (8, 4), (8, 8))] == [low, low, low, high]
    assert {low, high} <= set(suits(teacher))


def test_each_row_has_a_preset_of_its_own() -> None:
    teacher = resnet()
    assert {name: preset_for(METHODS[name], teacher) for name in ("genie", "zeroq", "gdfq", "synq", "psaq")} == {
        "genie": "brecq", "zeroq": "brecq", "gdfq": "uniform", "synq": "uniform", "psaq": "psaq",
    }  # fmt: skip
    assert preset_for(METHODS["distill"], teacher) == "uniform" and preset_for(METHODS["distill"], vit()) == "psaq"
    for preset in ("brecq", "psaq", "uniform"):
        assert preset_config("w4a4", preset, teacher).weight is not None
    with pytest.raises(ValueError, match="preset is 'gdfq'; give brecq, psaq or uniform"):
        preset_config("w4a4", "gdfq", teacher)


@pytest.mark.parametrize(("norm", "method"), [(nn.Identity, "rtn-noise"), (nn.BatchNorm2d, "zeroq")])
def test_a_net_whose_layers_share_a_weight_is_given_what_takes_it(norm: Any, method: str) -> None:
    body = [nn.Conv2d(3, 8, 3), norm(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)]
    teacher = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    assert auto(teacher, (4, 4)) in ("onepass", "onepass-pink")
    body[5].weight = body[3].weight
    assert auto(teacher, (4, 4)) == auto(teacher, (8, 8)) == method
    student = zsaq.quantize(teacher, "w4a4", spec=zsaq.ImageSpec(4, 16), images=4)
    assert student.zsaq.results.method == method
