"""Teachers and test images of CIFAR-10: ResNets as He et al. 2016 (arXiv 1512.03385, sec. 4.2) build them, read from a
state dict in safetensors with the usual names (`conv1, bn1, layer{1,2,3}.{i}.{conv1,bn1,conv2,bn2}, linear`)."""

import re
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from zsaq.eval.images import ImageSource, open_pictures
from zsaq.foreign import made
from zsaq.vision.image_spec import ImageSpec

SPEC = ImageSpec(classes=10, size=32)
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, with which these teachers were trained


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut without weights (option A): every second pixel, new channels zero."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(into, out, 3, stride, 1, bias=False)
        self.bn1, self.relu1 = nn.BatchNorm2d(out), nn.ReLU()
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2, self.relu2 = nn.BatchNorm2d(out), nn.ReLU()
        self.stride, self.new = stride, out - into

    def forward(self, x: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        before, behind = self.new // 2, self.new - self.new // 2
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, behind))
        return self.relu2(branch + shortcut)


class CifarResNet(nn.Module):
    """6n + 2 layers for images [B, 3, 32, 32]: three stages of n blocks with 16, 32 and 64 channels.

    Every ReLU is a module of its own, so that each can get a quantizer of its own.
    """

    def __init__(self, n: int, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(16), nn.ReLU()
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(*(BasicBlock(out if i else into, out, 1 if i else stride) for i in range(n)))
            for into, out, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2))
        )
        self.pool, self.linear = nn.AdaptiveAvgPool2d(1), nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return self.linear(self.pool(self.layer3(self.layer2(self.layer1(x)))).flatten(1))


def load_resnet(path: str | Path) -> CifarResNet:
    """The ResNet of a state dict, in eval mode; its depth is read from the names. Raises ValueError if they differ."""
    if not Path(path).is_file():
        raise ValueError(f"{path} is no file; give a state dict in safetensors")
    with made(str(path), "net"):
        state = load_file(path)
    depth = {int(name.split(".")[1]) for name in state if re.match(r"layer1\.\d{1,9}\.", name)}
    head = state.get("linear.weight")
    if head is None or head.ndim != 2 or depth != set(range(len(depth))) or not depth:
        raise ValueError(f"{path} holds {sorted(state)[:4]} ...; give a CIFAR ResNet with layer1.0.conv1 ... linear")
    model = CifarResNet(len(depth), len(head))
    own = model.state_dict()
    if other := sorted(n for n in own.keys() & state.keys() if own[n].shape != state[n].shape):
        raise ValueError(f"{path} has other shapes in {other[:4]}; give a CIFAR ResNet of He et al.")
    missing, unknown = model.load_state_dict(state, strict=False)
    # Batches that were counted in training have no meaning here, and not everyone stores their number.
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unknown:
        raise ValueError(f"{path} lacks {missing} and has {unknown} too much; give a CIFAR ResNet of He et al.")
    return model.eval()


def normalised(image: Image.Image) -> Tensor:
    """A picture of 32 x 32 as [3, 32, 32] float32 in normalised space. Raises ValueError for another size."""
    if image.size != (SPEC.size, SPEC.size):
        raise ValueError(f"an image is {image.size} pixels; CIFAR's are (32, 32)")
    pixels = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
    scaled = pixels.view(SPEC.size, SPEC.size, 3).permute(2, 0, 1).float() / 255
    return (scaled - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]


def test_images(path: str | Path) -> tuple[Tensor, Tensor]:
    """All images [N, 3, 32, 32] float32 in normalised space and labels [N] int64 of a parquet file."""
    rows = [(normalised(row.image()), row.label) for row in open_pictures(ImageSource(str(path)))]
    if not rows:
        raise ValueError(f"{path} holds no rows; give labelled images")
    return torch.stack([image for image, _ in rows]), torch.tensor([label for _, label in rows])
