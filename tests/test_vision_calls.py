"""Layers that are called in ways of their own."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vision_toys import CLASSES, cnn
from zsaq import ImageSpec, QuantConfig, quantize
from zsaq.quant.layers import QuantLayer
from zsaq.vision.choice import suits
from zsaq.vision.heads import head
from zsaq.vision.sources.swing import swing


class Scaled(nn.Conv2d):
    def forward(self, x: Tensor, more: Tensor | None = None, *, scale: float = 1.0) -> Tensor:  # pyright: ignore
        return super().forward(x) * scale + (0 if more is None else more)


def test_the_swing_leaves_other_arguments() -> None:
    conv, x, more = Scaled(3, 4, 3, 2, 1), torch.ones(1, 3, 8, 8), torch.tensor(5.0)
    with swing(conv, 0):
        swung = conv(x, more, scale=3.0)
    torch.testing.assert_close(swung[..., 1:-1, 1:-1], conv(x, more, scale=3.0)[..., 1:-1, 1:-1])


def test_layers_that_torch_fuses_are_reached() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.layers = nn.Conv2d(3, 16, 8, 8), nn.TransformerEncoder(layer, 1)
            self.linear = nn.Linear(16, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.layers(self.patches(x).flatten(2).transpose(1, 2)).mean(1))

    few: dict[str, Any] = {"images": 4, "steps": 1, "batch_size": 2, "effort": "light"}
    teacher: Any = Fused().eval()
    student = quantize(teacher, QuantConfig.parse("w4a16"), method="genie-noise", spec=ImageSpec(CLASSES, 16), **few)
    first = student.module.layers.layers[0].linear1
    assert isinstance(first, QuantLayer) and not torch.equal(first.weight, teacher.layers.layers[0].linear1.weight)


class Headed(nn.Module):
    """A net of one image size, whose answer is made of what one or two linear layers answer."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.conv, self.norm, self.answer = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), answer
        self.first, self.second = nn.Linear(8 * 14 * 14, CLASSES), nn.Linear(8 * 14 * 14, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self, self.norm(self.conv(x)).relu().flatten(1))


@pytest.mark.parametrize(
    "answer", [lambda net, y: net.first(y)[:, :3], lambda net, y: torch.cat([net.first(y), net.first(y)[:, :1]], 1)]
)
def test_a_linear_layer_behind_which_classes_are_chosen_is_the_head(answer: Any) -> None:
    net = Headed(answer).eval()
    assert head(net, ImageSpec(1, 16)) is net.first


def test_of_two_linear_layers_none_is_the_head() -> None:
    net = Headed(lambda net, y: net.first(y) + net.second(y)).eval()
    with pytest.raises(ValueError, match="Headed has 2 linear heads; give a classifier that ends in one"):
        head(net, ImageSpec(CLASSES, 16))


def test_a_net_of_one_size_asks_for_it() -> None:
    with pytest.raises(ValueError, match=r"cannot take an image of .*size=64.*; give the ImageSpec of its images"):
        suits(Headed(lambda net, y: net.first(y)).eval())


def test_an_unused_layer_in_a_block_that_is_reached_is_left_to_it() -> None:
    net: Any = cnn()
    net.layer1[0].unused = nn.Conv2d(8, 8, 1)
    few: dict[str, Any] = {"images": 4, "steps": 1, "batch_size": 2, "effort": "light"}
    student = quantize(net, QuantConfig.parse("w4a16"), method="genie-noise", spec=ImageSpec(CLASSES, 16), **few)
    assert isinstance(student.module.layer1[0].unused, QuantLayer)
