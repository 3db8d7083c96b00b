"""Layers that are called in ways of their own."""

from typing import Any

import torch
from torch import Tensor, nn

from vision_toys import CLASSES
from zsaq import ImageSpec, QuantConfig, quantize
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
    quantize(Fused().eval(), QuantConfig.parse("w4a16"), method="genie-noise", spec=ImageSpec(CLASSES, 16), **few)
