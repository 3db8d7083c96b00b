"""What suits a teacher: methods by its kind, the one chosen by its kind and bits, and presets."""

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor, nn
from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

import zsaq
from vision_toys import CLASSES, TRANSFORMER, cnn, convnext, deit, mobilenet, names, regnet, resnet, swin, vit
from zsaq.vision.choice import auto, check_needs, preset_for, suits
from zsaq.vision.classifier import classifier
from zsaq.vision.heads import has_head, head
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.methods import METHODS
from zsaq.vision.presets import preset_config

SPEC = ImageSpec(4, 16)


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


class Squeezed(nn.Module):
    """SiLUs, and one ReLU in the squeeze, as MobileNetV3 and EfficientNet may have it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act, self.relu = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.ReLU()
        self.down, self.up, self.last, self.fc = nn.Linear(8, 2), nn.Linear(2, 8), nn.Conv2d(8, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.conv(x)))
        x = x * self.up(self.relu(self.down(x.mean((2, 3))))).sigmoid()[..., None, None]
        return self.fc(self.act(self.last(x)).mean((2, 3)))


def test_uniform_is_for_nets_that_are_mostly_relus(capsys: pytest.CaptureFixture[str]) -> None:
    shared = nn.ReLU()
    bodies = [m for _ in range(6) for m in (nn.Conv2d(3, 3, 3), shared)]
    one = nn.Sequential(*bodies, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    for net in (resnet(), resnet(layer_type="bottleneck"), regnet(), mobilenet(), cnn(), one.eval()):
        assert preset_for(METHODS["hast"], net, ImageSpec(4, 32)) == "uniform"
    net = Squeezed().eval()
    budget: dict[str, Any] = {"images": 2, "image_steps": 1, "steps": 1, "batch_size": 2}
    assert preset_for(METHODS["hast"], net, SPEC) == "psaq"
    for preset, told in ((None, 0), ("uniform", 1), ("brecq", 0)):
        results = zsaq.quantize(net, "w4a4", method="hast", preset=preset, spec=SPEC, **budget).zsaq.results
        assert results.preset == (preset or "psaq")
        assert capsys.readouterr().err.count("1 beside the 5 layers of Squeezed: about 4 read floats; preset") == told


@pytest.mark.parametrize(("norm", "method"), [(nn.Identity, "rtn-noise"), (nn.BatchNorm2d, "zeroq")])
def test_a_net_whose_layers_share_a_weight_is_given_what_takes_it(norm: Any, method: str) -> None:
    body = [nn.Conv2d(3, 8, 3), norm(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)]
    teacher = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    assert auto(teacher, (4, 4)) in ("onepass", "onepass-pink")
    body[5].weight = body[3].weight
    assert auto(teacher, (4, 4)) == auto(teacher, (8, 8)) == method
    student = zsaq.quantize(teacher, "w4a4", spec=zsaq.ImageSpec(4, 16), images=4)
    assert student.zsaq.results.method == method


class Gated(nn.Module):
    """A head that is registered before a gate, and a projector that nothing calls; `classes` of a convolution, or of a
    linear layer with what stands behind."""

    def __init__(self, convolutional: bool = False, behind: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.fc: nn.Module = nn.Conv2d(8, 4, 1) if convolutional else nn.Linear(8, 4)
        self.conv, self.norm, self.gate = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 8)
        self.projector, self.behind = nn.Linear(8, 4), behind

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu().mean((2, 3))
        x = x * self.gate(x).sigmoid()
        return self.behind(self.fc(x[..., None, None]).flatten(1) if isinstance(self.fc, nn.Conv2d) else self.fc(x))


def test_sadag_deep_reads_no_head() -> None:
    body = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 4, 1), nn.Flatten()]
    budget: dict[str, Any] = {"images": 4, "image_steps": 1, "warm_steps": 1, "sharpening": 1, "steps": 1}
    student = zsaq.quantize(nn.Sequential(*body).eval(), "w4a4", method="sadag-deep", spec=SPEC, **budget)
    assert student.zsaq.results.method == "sadag-deep"


class Twofold(Gated):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.projector(self.conv(x).mean((2, 3)))


@pytest.mark.parametrize("behind", [lambda x: x, lambda x: x.softmax(1), lambda x: 2 * x])
def test_the_head_of_a_plain_module_is_what_answers(behind: Callable[[Tensor], Tensor]) -> None:
    net = Gated(behind=behind).eval()
    assert head(net) is head(net.half(), SPEC) is head(classifier(net)) is net.fc and has_head(net)


@pytest.mark.parametrize(("net", "found"), [(Gated(convolutional=True), 0), (Twofold(), 2)])
def test_a_net_that_no_linear_layer_answers_is_offered_no_method_of_heads(net: nn.Module, found: int) -> None:
    assert not has_head(net.eval(), SPEC)
    with pytest.raises(ValueError, match=f"has {found} linear heads; give a classifier that ends in one"):
        head(net, SPEC)
    of_heads = {"intraq", "qimera", "qimera-ait", "sadag", "sadag-released"}
    assert set(suits(net, SPEC)) == set(suits(resnet())) - of_heads
    with pytest.raises(ValueError, match=f"{type(net).__name__} does not suit intraq, which needs .* a linear head"):
        zsaq.quantize(net, "w4a4", method="intraq", spec=SPEC)
