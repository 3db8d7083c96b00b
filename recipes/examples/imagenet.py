"""ImageNet's teacher and pictures: a MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381) from a state dict in
safetensors with torchvision's names (`features.{0..18}`, `classifier.1`), as transformers' class."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import BitImageProcessorPil, MobileNetV2Config, MobileNetV2ForImageClassification

from zsaq.eval.imagenet import DEVIATION, MEAN
from zsaq.eval.images import ImageSource, open_pictures
from zsaq.foreign import made
from zsaq.vision.image_spec import ImageSpec

SPEC = ImageSpec(classes=1000, size=224)
PROCESSOR = BitImageProcessorPil(  # the whole picture, bilinear
    size={"height": SPEC.size, "width": SPEC.size}, do_center_crop=False, resample=Image.Resampling.BILINEAR,
    image_mean=list(MEAN), image_std=list(DEVIATION),
)  # fmt: skip


def places() -> dict[str, str]:
    """transformers' name of each module that torchvision names."""

    def pair(convolution: str, norm: str, place: str) -> dict[str, str]:
        place = f"mobilenet_v2.{place}"
        return {f"features.{convolution}": f"{place}.convolution", f"features.{norm}": f"{place}.normalization"}

    names = pair("0.0", "0.1", "conv_stem.first_conv")
    names |= pair("1.conv.0.0", "1.conv.0.1", "conv_stem.conv_3x3")
    names |= pair("1.conv.1", "1.conv.2", "conv_stem.reduce_1x1")
    for i in range(16):
        names |= pair(f"{i + 2}.conv.0.0", f"{i + 2}.conv.0.1", f"layer.{i}.expand_1x1")
        names |= pair(f"{i + 2}.conv.1.0", f"{i + 2}.conv.1.1", f"layer.{i}.conv_3x3")
        names |= pair(f"{i + 2}.conv.2", f"{i + 2}.conv.3", f"layer.{i}.reduce_1x1")
    return names | pair("18.0", "18.1", "conv_1x1") | {"classifier.1": "classifier"}


def load_mobilenet(path: str | Path) -> MobileNetV2ForImageClassification:
    """The net of a state dict, in eval mode, every tensor used once; the number of classes is the head's.

    Padding and BatchNorm's epsilon are torchvision's (even, 1e-5), not TensorFlow's. Raises ValueError if names or
    shapes differ.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path} is no file; give a state dict in safetensors")
    with made(str(path), "net"):
        state, where = load_file(path), places()
    stems = {name: where.get(name.rpartition(".")[0]) for name in state}
    strange = sorted(name for name, place in stems.items() if place is None)
    if strange or "classifier.1.weight" not in state:
        raise ValueError(
            f"{path} holds {strange[:4] or sorted(state)[:4]} ...; give torchvision's MobileNetV2, width 1"
        )
    classes: dict[str, Any] = {"num_labels": len(state["classifier.1.weight"])}
    model = MobileNetV2ForImageClassification(MobileNetV2Config(tf_padding=False, layer_norm_eps=1e-5, **classes))
    named: dict[str, Tensor] = {f"{stems[name]}.{name.rpartition('.')[2]}": value for name, value in state.items()}
    own = model.state_dict()
    # Batches that were counted in training have no meaning here, and not everyone stores their number.
    missing = sorted(name for name in own.keys() - named.keys() if not name.endswith("num_batches_tracked"))
    unknown = sorted(named.keys() - own.keys())
    other = [f"{n} {list(named[n].shape)}" for n in own.keys() & named.keys() if named[n].shape != own[n].shape]
    if missing or unknown or other:
        raise ValueError(
            f"{path} lacks {missing[:4]}, has {unknown[:4]} too much and other shapes in {sorted(other)[:4]}; "
            "give torchvision's MobileNetV2, width 1"
        )
    model.load_state_dict(named, strict=False)
    return model.eval()


def stream(path: str | Path, limit: int | None = None, size: int = 50) -> Iterator[dict[str, Tensor]]:
    """The first `limit` images of a parquet file (None: all), `size` at a time: pixel_values [B, 3, 224, 224] float32
    in normalised space and labels [B] int64."""
    rows = islice(open_pictures(ImageSource(str(path))), limit)
    while chunk := list(islice(rows, size)):
        shown = [row.image() for row in chunk]
        pixels = PROCESSOR(images=shown, return_tensors="pt")["pixel_values"]
        yield {"pixel_values": pixels, "labels": torch.tensor([row.label for row in chunk])}
