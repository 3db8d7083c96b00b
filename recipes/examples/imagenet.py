"""ImageNet's teachers and pictures: EfficientNet-Lite (examples/efficientnet.py), and a MobileNetV2 (Sandler et al.
2018, arXiv 1801.04381) from a state dict in safetensors with torchvision's names (`features.{0..18}`, `classifier.1`),
as transformers' class.

    PYTHONPATH=recipes python -m examples.imagenet lite0 model.safetensors pictures.parquet --size 128   # the teacher
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import BitImageProcessorPil, MobileNetV2Config, MobileNetV2ForImageClassification

import zsaq
from zsaq.foreign import made
from zsaq.script import positive, told
from zsaq.vision.image_spec import ImageSpec

with told():
    from PIL import Image

    from examples.efficientnet import fill, load_efficientnet
    from zsaq.eval.imagenet import score
    from zsaq.eval.images import ImageSource, open_pictures
    from zsaq.eval.processing import DEVIATION, MEAN, normalises


def spec_of(size: int = 224) -> ImageSpec:
    return ImageSpec(classes=1000, size=size)


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


def load_mobilenet(path: str | Path, size: int = 224) -> MobileNetV2ForImageClassification:
    """The net of a state dict for images of `size` pixels, in eval mode; the number of classes is the head's.

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
    config = MobileNetV2Config(tf_padding=False, layer_norm_eps=1e-5, image_size=size, **classes)
    model = MobileNetV2ForImageClassification(config)
    named: dict[str, Tensor] = {f"{stems[name]}.{name.rpartition('.')[2]}": value for name, value in state.items()}
    fill(model, named, path, "torchvision's MobileNetV2, width 1")
    return model.eval()


@dataclass(frozen=True)
class Net:
    """A teacher of ImageNet, and how the pictures were resized and normalised that it learned from."""

    load: Callable[[str | Path, int], Any]
    mean: tuple[float, ...] = MEAN
    deviation: tuple[float, ...] = DEVIATION
    resample: Image.Resampling = Image.Resampling.BILINEAR

    def with_(self, mean: Sequence[float] | None, deviation: Sequence[float] | None) -> "Net":
        """The net under another normalisation; None: its own. Raises ValueError for not three finite numbers, or a
        deviation that is not positive."""
        mean, deviation = tuple(mean or self.mean), tuple(deviation or self.deviation)
        if {len(mean), len(deviation)} != {3} or not normalises(mean, deviation):
            raise ValueError(
                f"mean {mean} and deviation {deviation}: give three finite numbers each, deviations above 0"
            )
        return replace(self, mean=mean, deviation=deviation)

    def processor(self, size: int = 224) -> BitImageProcessorPil:
        """The whole picture."""
        return BitImageProcessorPil(
            size={"height": size, "width": size}, do_center_crop=False, resample=self.resample,
            image_mean=list(self.mean), image_std=list(self.deviation),
        )  # fmt: skip


def lite(number: int) -> Net:
    """EfficientNet-Lite0 to 4, which learned from images of 224, 240, 260, 280 and 300 pixels (`--size`)."""
    load = partial(load_efficientnet, lite=number)
    return Net(load, (127 / 255,) * 3, (128 / 255,) * 3, Image.Resampling.BICUBIC)


NETS: Final = {"mobilenet": Net(load_mobilenet)} | {f"lite{number}": lite(number) for number in range(5)}


def stream(
    path: str | Path, processor: Any = None, limit: int | None = None, batch: int = 50
) -> Iterator[dict[str, Tensor]]:
    """The first `limit` images of a parquet file (None: all), `batch` at a time: pixel_values [B, 3, S, S] float32 in
    normalised space and labels [B] int64. `processor`: by default MobileNetV2's at 224 pixels."""
    rows, processor = islice(open_pictures(ImageSource(str(path))), limit), processor or NETS["mobilenet"].processor()
    while chunk := list(islice(rows, batch)):
        pixels = processor(images=[row.image() for row in chunk], return_tensors="pt")["pixel_values"]
        yield {"pixel_values": pixels, "labels": torch.tensor([row.label for row in chunk])}


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--limit", type=positive, help="ImageNet's: how many images of each file, if not all")
    parser.add_argument("--size", type=positive, default=224, help="ImageNet's: side in pixels of what they are shown")
    for flag, what in {"mean": "mean", "std": "deviation"}.items():
        words = f"ImageNet's: another {what} than the net was trained with"
        parser.add_argument(f"--{flag}", type=float, nargs=3, metavar="X", help=words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("net", choices=NETS)
    parser.add_argument("weights", help="a state dict in safetensors, or a saved student")
    parser.add_argument("test", help="a parquet file with test images")
    add_flags(parser)
    args = parser.parse_args()
    net = NETS[args.net].with_(args.mean, args.std)
    model = zsaq.load(args.weights) if Path(args.weights).is_dir() else net.load(args.weights, args.size)
    print(json.dumps(score(model, stream(args.test, net.processor(args.size), args.limit)) | vars(args)))


if __name__ == "__main__":
    with told():
        main()
