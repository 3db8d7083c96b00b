"""What single papers' methods need is told before images are made."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zsaq
from test_vision_early import no_image_is_made, shared
from vision_toys import CLASSES, cnn, spread
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.losses.smoothness import TextureEnergy
from zsaq.vision.methods import METHODS

__all__ = ["no_image_is_made"]

TWICE = ["gdfq", "qimera", "gdfq-ait", "qimera-ait", "gdfq-kl", "adasg", "adadfq", "texq"]
BEGUN: dict[str, Any] = {"onepass": True}


def quantize(method: str, teacher: nn.Module, size: int, **options: Any) -> None:
    zsaq.quantize(teacher, "w4a4", method=method, spec=ImageSpec(CLASSES, size), effort="light", **options)


def refused(method: str, said: str, teacher: nn.Module, size: int, **options: Any) -> None:
    with pytest.raises(ValueError, match=said):
        quantize(method, teacher, size, **options)


def taken(method: str, teacher: nn.Module, size: int, **options: Any) -> None:
    with pytest.raises(AssertionError, match="images are made"):
        quantize(method, teacher, size, **options)


@pytest.mark.parametrize("begun", [{}, BEGUN])
@pytest.mark.parametrize(
    ("method", "size", "times", "multiple"),
    [*((name, 18, 2, 4) for name in TWICE), *((name, 20, 3, 8) for name in ("arc", "arc-ait"))],
)
def test_a_side_that_a_generator_does_not_reach(
    method: str, size: int, times: int, multiple: int, begun: dict[str, Any]
) -> None:
    said = f"{size} pixels wide, and this generator doubles its maps {times} times: give a multiple of {multiple}, or"
    refused(method, said, cnn(), size, **begun)


@pytest.mark.parametrize("method", [*TWICE, "arc", "arc-ait"])
def test_a_batch_of_one_for_a_generator_s_norms(method: str) -> None:
    refused(method, "batch_size is 1; a generator's norms work on a batch: give at least 2", cnn(), 16, batch_size=1)


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        *((name, BEGUN | {"margins": (0.8, 0.3)}, "lower is 0.8, upper 0.3") for name in ("adasg", "adadfq")),
        ("plf", {"lowest": 0.6}, r"lowest is 0\.6, highest 0\.5; give shares of log C"),
        ("plf", {"highest": 0.1}, r"lowest is 0\.2, highest 0\.1"),
    ],
)
def test_settings_that_are_out_of_order(method: str, options: dict[str, Any], said: str) -> None:
    refused(method, said, cnn(), 16, **options)


def test_texture_of_a_few_pixels() -> None:
    said = "texture needs at least 8 pixels a side, here are 4: give larger images, or texture=0"
    refused("texq", said, cnn(), 4, **BEGUN)
    with pytest.raises(ValueError, match="here are 7"):
        TextureEnergy().shares(torch.randn(2, 3, 9, 7))
    assert TextureEnergy().shares(torch.randn(2, 3, 8, 8)).sum(1).allclose(torch.ones(2))
    taken("texq", cnn(), 4, texture=0.0, **BEGUN)


def test_layers_of_one_weight_under_a_preset_that_a_first_pass_rounds_by() -> None:
    refused("gdfq", "share a weight", shared(), 16, preset="brecq", **BEGUN)


@pytest.mark.parametrize(
    "method", [name for name in METHODS if "synq" in name and name not in ("synq-no-maps", "synq-psaq", "synq-real")]
)
def test_maps_of_one_pixel(method: str) -> None:
    net = spread(
        nn.Sequential(nn.Conv2d(3, 8, 16), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8, CLASSES)), 16
    )
    refused(method, "no convolution with a map of several pixels; show larger images", net, 16)
    if "maps" in METHODS[method].settings:
        taken(method, net, 16, maps=0.0)


class Mixed(nn.Module):
    """A convolution with its BatchNorm, and an attention behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn, self.block = nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), Attending()
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.bn(self.stem(x)).flatten(2).transpose(1, 2)).mean(1))


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention, self.mlp = nn.LayerNorm(8), Attention(), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(x + self.attention(self.norm(x)))


class Attention(nn.Module):
    num_heads = 1

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.q_proj(x) @ self.k_proj(x).mT).softmax(-1)
        return self.o_proj(weights @ self.v_proj(x))


def test_gradients_of_a_map_that_no_convolution_answers() -> None:
    refused(
        "sadag-deep",
        r"Mixed: its last map .* module\.block\.norm answers, a LayerNorm, .*: take sadag",
        spread(Mixed()),
        16,
    )
