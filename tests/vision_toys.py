"""Tiny classifiers of images with random weights: different answers for different images, BatchNorm statistics that
are neither 0 nor 1. All are in eval mode and take images of [B, 3, 16, 16] or [B, 3, 32, 32]."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    RegNetConfig,
    RegNetForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from zsaq.train.pair import run_model

CLASSES = 4


class Block(nn.Module):
    """conv-BN-ReLU-conv-BN plus the input (subsampled, zero-padded in channels), ReLU."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.relu1, self.relu2, self.stride = nn.ReLU(), nn.ReLU(), stride

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        x = x[:, :, :: self.stride, :: self.stride]
        return self.relu2(y + nn.functional.pad(x, (0, 0, 0, 0, 0, y.shape[1] - x.shape[1])))


class Cnn(nn.Module):
    """A plain residual net: stem, two residual blocks, pooling, `linear`. Answers a Tensor [B, CLASSES] to a Tensor."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        self.layer1, self.layer2 = nn.Sequential(Block(8, 8, 1)), nn.Sequential(Block(8, 16, 2))
        self.pool, self.linear = nn.AdaptiveAvgPool2d(1), nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.pool(self.layer2(self.layer1(self.relu(self.bn1(self.conv1(x)))))).flatten(1))


def spread(model: nn.Module, size: int = 32) -> Any:
    """Random weights, the same at every call, in eval mode. Weights are drawn at about their fan-in's inverse root;
    BatchNorm statistics near those of smooth noise; the head so that logits over `images` have mean 0 and deviation 2.
    """
    rng = torch.Generator().manual_seed(0)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    head = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "token" in name or "position" in name:
                parameter.normal_(0, 0.2, generator=rng)
            elif parameter.ndim >= 2:
                parameter.normal_(0, 1.5 * parameter[0].numel() ** -0.5, generator=rng)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.1, generator=rng)
        for norm in norms:
            norm.weight.uniform_(0.6, 1.2, generator=rng)
            norm.train().momentum = None  # the average of all batches: the one below
        run(model, images(64, size, seed=1))
        for norm in norms:
            norm.eval().momentum = 0.1
            assert norm.running_mean is not None and norm.running_var is not None
            norm.running_mean.add_(0.1 * torch.randn(norm.num_features, generator=rng))
            norm.running_var.mul_(0.7 + 0.6 * torch.rand(norm.num_features, generator=rng)).clamp_min_(1e-2)
        model.eval()
        head.weight.mul_(2 / run(model, images(64, size, seed=1)).std(0)[:, None])
        head.bias.sub_(run(model, images(64, size, seed=1)).mean(0))
    return model


def run(model: nn.Module, pixels: Tensor) -> Tensor:
    """Logits of a plain or a transformers model."""
    answer = model(pixels)
    return answer if isinstance(answer, Tensor) else answer.logits


def names(classes: int) -> dict[str, Any]:
    return {
        "id2label": {i: f"class {i}" for i in range(classes)},
        "label2id": {f"class {i}": i for i in range(classes)},
    }


def cnn(classes: int = CLASSES) -> Cnn:
    """Plain nn.Module with BatchNorm: wrap it with `zsaq.vision.models.classifier`."""
    return spread(Cnn(classes))


def resnet(classes: int = CLASSES, layer_type: str = "basic") -> Any:
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type=layer_type, downsample_in_first_stage=False,
        **names(classes),
    )  # fmt: skip
    return spread(ResNetForImageClassification(config))


def regnet(classes: int = CLASSES) -> Any:
    config = RegNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], groups_width=4, **names(classes))
    return spread(RegNetForImageClassification(config))


def mobilenet(classes: int = CLASSES) -> Any:
    config = MobileNetV2Config(image_size=32, depth_multiplier=0.1, min_depth=4, depth_divisible_by=4, **names(classes))
    return spread(MobileNetV2ForImageClassification(config))


def convnext(classes: int = CLASSES) -> Any:
    config = ConvNextConfig(
        image_size=32, hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, patch_size=2, layer_scale_init_value=0.5,
        **names(classes),
    )  # fmt: skip
    return spread(ConvNextForImageClassification(config))


TRANSFORMER: dict[str, Any] = {
    "image_size": 16, "patch_size": 4, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 64, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip


def vit(classes: int = CLASSES) -> Any:
    """Images of 16 x 16 only."""
    return spread(ViTForImageClassification(ViTConfig(**TRANSFORMER, **names(classes))), 16)


def deit(classes: int = CLASSES) -> Any:
    """Images of 16 x 16 only."""
    return spread(DeiTForImageClassification(DeiTConfig(**TRANSFORMER, **names(classes))), 16)


def swin(classes: int = CLASSES) -> Any:
    """Images of 32 x 32: two stages of 8 x 8 and 4 x 4 tokens, windows of 4, shifted in the second block."""
    config = SwinConfig(
        image_size=32, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 2], window_size=4, drop_path_rate=0.0,
        **names(classes),
    )  # fmt: skip
    return spread(SwinForImageClassification(config))


def images(n: int = 8, size: int = 16, seed: int = 0) -> Tensor:
    """Smooth random images [n, 3, size, size] in normalised space."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.randn(n, 3, 4, 4, generator=rng)
    fine = 0.3 * torch.randn(n, 3, size, size, generator=rng)
    return nn.functional.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False) + fine


def logits(model: nn.Module, x: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return run_model(model, {"pixel_values": images(4) if x is None else x}).logits
