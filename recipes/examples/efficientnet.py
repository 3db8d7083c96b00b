"""EfficientNet-Lite (Tan and Le 2019, arXiv 1905.11946, without squeeze and with ReLU6), 0 to 4, as the Hugging Face
model that `from_pretrained` and `AutoModelForImageClassification` read, once this module is imported.

Its layers are plain: every ReLU6 a module of its own, TensorFlow's "same" padding of strided convolutions, one pixel
more behind than before, as `ZeroPad2d`. Weights come from a state dict in safetensors with the names of
efficientnet-lite-pytorch (`_conv_stem`, `_blocks.{0...}._expand_conv, ...`, `_fc`).
"""

import math
import re
from pathlib import Path
from typing import Any, Final

from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from zsaq.foreign import made

# Table 1 of the paper, B0: expansion, channels, repeats, first stride, kernel.
STAGES: Final = (
    (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)  # fmt: skip
STEM, TOP, EPSILON = 32, 1280, 1e-3
SCALES: Final = ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8))  # width and depth of Lite0 to Lite4


class EfficientNetLiteConfig(PreTrainedConfig):
    """`lite`: which of EfficientNet-Lite0 to 4. `image_size` decides on which side a map with an odd side is padded;
    sides whose halves are even alike (224, 128) give one net."""

    model_type = "efficientnet_lite"
    image_size: int = 224
    num_channels: int = 3
    lite: int = 0


def stages(lite: int) -> list[tuple[int, int, int, int, int]]:
    """`STAGES` of EfficientNet-Lite: channels times its width, to the nearest 8 and no less than nine tenths, repeats
    times its depth, upwards; stem, top and the repeats of the first and last stage stay as they are. Raises ValueError
    for a number that does not exist."""
    if type(lite) is not int or not 0 <= lite < len(SCALES):
        raise ValueError(f"lite is {lite!r}, which EfficientNet-Lite it is; give 0 to {len(SCALES) - 1}")
    width, depth = SCALES[lite]
    scaled = []
    for i, (expansion, channels, repeats, stride, kernel) in enumerate(STAGES):
        out = max(8, int(channels * width + 4) // 8 * 8)
        out += 8 if out < 0.9 * channels * width else 0
        repeats = repeats if i in (0, len(STAGES) - 1) else math.ceil(repeats * depth)
        scaled.append((expansion, out, repeats, stride, kernel))
    return scaled


def same(side: int, kernel: int, stride: int) -> nn.ZeroPad2d:
    """Padding that leaves ceil(side / stride) places, what is odd of it behind."""
    total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    before, behind = total // 2, total - total // 2
    return nn.ZeroPad2d((before, behind, before, behind))


class Block(nn.Module):
    """An inverted residual with a linear bottleneck, for maps [B, into, side, side]."""

    def __init__(self, into: int, out: int, expansion: int, kernel: int, stride: int, side: int) -> None:
        super().__init__()
        inner = into * expansion
        self.expands, self.adds = expansion > 1, stride == 1 and into == out
        if self.expands:
            self.expand_conv = nn.Conv2d(into, inner, 1, bias=False)
            self.bn0, self.relu0 = nn.BatchNorm2d(inner, EPSILON), nn.ReLU6()
        self.pad = same(side, kernel, stride) if stride > 1 else nn.Identity()
        self.depthwise_conv = nn.Conv2d(
            inner, inner, kernel, stride, 0 if stride > 1 else kernel // 2, groups=inner, bias=False
        )
        self.bn1, self.relu1 = nn.BatchNorm2d(inner, EPSILON), nn.ReLU6()
        self.project_conv = nn.Conv2d(inner, out, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        inside = self.relu0(self.bn0(self.expand_conv(x))) if self.expands else x
        inside = self.relu1(self.bn1(self.depthwise_conv(self.pad(inside))))
        inside = self.bn2(self.project_conv(inside))
        return x + inside if self.adds else inside


class EfficientNetLite(nn.Module):
    """Pooled features [B, 1280] of images [B, channels, size, size]."""

    def __init__(self, channels: int, size: int, lite: int) -> None:
        super().__init__()
        if type(size) is not int or size < 1:
            raise ValueError(f"image_size is {size!r}; give the side of the images in pixels")
        self.pad, self.conv_stem = same(size, 3, 2), nn.Conv2d(channels, STEM, 3, 2, bias=False)
        self.bn0, self.relu0 = nn.BatchNorm2d(STEM, EPSILON), nn.ReLU6()
        into, side, blocks = STEM, -(-size // 2), []
        for expansion, out, repeats, first, kernel in stages(lite):
            for repeat in range(repeats):
                stride = 1 if repeat else first
                blocks.append(Block(into, out, expansion, kernel, stride, side))
                into, side = out, -(-side // stride)
        self.blocks = nn.Sequential(*blocks)
        self.conv_head = nn.Conv2d(into, TOP, 1, bias=False)
        self.bn1, self.relu1 = nn.BatchNorm2d(TOP, EPSILON), nn.ReLU6()
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.relu0(self.bn0(self.conv_stem(self.pad(x)))))
        return self.pool(self.relu1(self.bn1(self.conv_head(x)))).flatten(1)


class EfficientNetLiteForImageClassification(PreTrainedModel):
    config_class, base_model_prefix, main_input_name = EfficientNetLiteConfig, "net", "pixel_values"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.net = EfficientNetLite(config.num_channels, config.image_size, config.lite)
        self.fc = nn.Linear(TOP, config.num_labels)
        self.post_init()

    def forward(self, pixel_values: Tensor, **_: Any) -> ImageClassifierOutputWithNoAttention:
        return ImageClassifierOutputWithNoAttention(logits=self.fc(self.net(pixel_values)))


AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig)
AutoModelForImageClassification.register(EfficientNetLiteConfig, EfficientNetLiteForImageClassification)


def load_efficientnet(path: str | Path, size: int = 224, lite: int = 0) -> EfficientNetLiteForImageClassification:
    """The net of a state dict for images of `size` pixels, in eval mode; the number of classes is the head's. Raises
    ValueError if names or shapes differ, and for a number that does not exist."""
    if not Path(path).is_file():
        raise ValueError(f"{path} is no file; give a state dict in safetensors")
    with made(str(path), "net"):
        state = {re.sub(r"(^|\.)_", r"\1", name): value for name, value in load_file(path).items()}
    head = state.get("fc.weight")
    if head is None or head.ndim != 2:
        raise ValueError(f"{path} holds {sorted(state)[:4]} ...; give EfficientNet-Lite{lite} with _conv_stem ... _fc")
    state = {name if name.startswith("fc.") else f"net.{name}": value for name, value in state.items()}
    numbers: dict[str, Any] = {"num_labels": len(head), "lite": lite}
    model = EfficientNetLiteForImageClassification(EfficientNetLiteConfig(image_size=size, **numbers))
    fill(model, state, path, f"EfficientNet-Lite{lite}")
    return model.eval()


def fill(model: nn.Module, state: dict[str, Tensor], path: str | Path, kind: str) -> None:
    """Every tensor of a state dict, used once. Raises ValueError, which names the file, if names or shapes differ."""
    own = model.state_dict()
    # Batches that were counted in training have no meaning here, and not everyone stores their number.
    missing = sorted(name for name in own.keys() - state.keys() if not name.endswith("num_batches_tracked"))
    unknown = sorted(state.keys() - own.keys())
    other = [f"{n} {list(state[n].shape)}" for n in own.keys() & state.keys() if state[n].shape != own[n].shape]
    if missing or unknown or other:
        raise ValueError(
            f"{path} lacks {missing[:4]}, has {unknown[:4]} too much and other shapes in {sorted(other)[:4]}; "
            f"give {kind}"
        )
    model.load_state_dict(state, strict=False)
