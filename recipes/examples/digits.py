"""The embedded default of the vision recipes: two teachers trained on the spot, without a download.

The data are scikit-learn's scans of 1,797 handwritten digits (8 x 8 pixels, from the UCI repository), shown as
32 x 32 RGB; the last 450 are held out. A small ResNet and a small ViT of transformers learn the others once, in about
a minute on one idle core, and are cached with their image processor and the held-out images. Measured on those:
ResNet 98.4 %, ViT 96.2 %.
"""

import hashlib
import io
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    get_cosine_schedule_with_warmup,
)

from examples.cache import made_once
from zsaq.script import told
from zsaq.train.logging import say
from zsaq.vision.image_spec import ImageSpec

with told():
    import datasets
    from PIL import Image

    from zsaq.eval.imagenet import score

SPEC = ImageSpec(classes=10, size=32)
HELD_OUT = 450
NAMES: dict[str, Any] = {"id2label": {i: str(i) for i in range(10)}, "label2id": {str(i): i for i in range(10)}}
PROCESSOR = ViTImageProcessorPil(
    size={"height": SPEC.size, "width": SPEC.size}, image_mean=[0.306] * 3, image_std=[0.323] * 3
)
Log = Callable[[str], object]


@dataclass(frozen=True)
class Recipe:
    epochs: int
    lr: float
    decay: float
    size: int = 32


RECIPES = {"resnet": Recipe(epochs=12, lr=3e-3, decay=0.05), "vit": Recipe(epochs=24, lr=1.5e-3, decay=0.05)}


@dataclass(frozen=True)
class Digits:
    """Teachers in eval mode on the CPU; images [N, 3, 32, 32] float32 in normalised space, labels [N] int64.

    `train`: real data, for upper bounds alone, which are not zero-shot. `folder` holds resnet/, vit/ and test.parquet.
    """

    resnet: ResNetForImageClassification
    vit: ViTForImageClassification
    test: tuple[Tensor, Tensor]
    train: tuple[Tensor, Tensor]
    folder: Path


def prepare(cache: Path | None = None, log: Log = say, recipes: dict[str, Recipe] = RECIPES) -> Digits:
    """The embedded default, from the cache or trained now; `log` takes the progress, a line at a time.

    `cache`: the folder of all such defaults (`examples.cache`). Whatever changes the
    result (this source, the recipes, the libraries) changes the name of the folder in it.
    """
    images, pixels, labels = read_scans()
    train, test = ((pixels[part], labels[part]) for part in (slice(None, -HELD_OUT), slice(-HELD_OUT, None)))

    def fill(folder: Path) -> None:
        for name, model in make(train, recipes, log).items():
            model.save_pretrained(folder / name)
            PROCESSOR.save_pretrained(folder / name)
            accuracy = score(model, [{"pixel_values": test[0], "labels": test[1]}])["top1"]
            log(f"{name}: {100 * accuracy:.1f} % of the {HELD_OUT} digits that were held out")
        save_images(images[-HELD_OUT:], labels[-HELD_OUT:].tolist(), folder / "test.parquet")

    folder = made_once(cache, f"digits-{fingerprint(recipes)}", fill)
    log(f"the embedded teachers are in {folder}")
    resnet = ResNetForImageClassification.from_pretrained(folder / "resnet").eval()
    return Digits(resnet, ViTForImageClassification.from_pretrained(folder / "vit").eval(), test, train, folder)


def fingerprint(recipes: dict[str, Recipe]) -> str:
    try:
        scans = version("scikit-learn")
    except PackageNotFoundError:
        raise ValueError('the scans of digits come with scikit-learn: pip install "zsaq[vision]"') from None
    parts = [sys.version, torch.__version__, transformers.__version__, scans, repr(recipes)]
    return hashlib.sha256(b"\0".join([Path(__file__).read_bytes(), *(p.encode() for p in parts)])).hexdigest()[:12]


def read_scans() -> tuple[list[Image.Image], Tensor, Tensor]:
    """The scans as 8 x 8 gray images, as the processor shows them, and their labels; in the data's order."""
    from sklearn.datasets import load_digits  # of an extra that recipes of text do without

    data: Any = load_digits()
    images = [Image.fromarray((scan * (255 / 16)).round().astype("uint8")) for scan in data.images]
    pixels = PROCESSOR(images=[image.convert("RGB") for image in images], return_tensors="pt")["pixel_values"]
    return images, pixels, torch.from_numpy(data.target).long()


def save_images(images: list[Image.Image], labels: list[int], path: Path) -> None:
    """As PNG in a parquet file with the columns `image` and `label`."""

    def png(image: Image.Image) -> dict[str, Any]:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    columns = {"image": [png(image) for image in images], "label": labels}
    datasets.Dataset.from_dict(columns, features).to_parquet(path)


def make(train: tuple[Tensor, Tensor], recipes: dict[str, Recipe], log: Log) -> dict[str, Any]:
    """Both teachers, trained on one thread, so that every machine gets the same. Random state is left as it was."""
    log("the embedded teachers are trained once, on scans of handwritten digits; about a minute")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    models: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        extra: dict[str, Any] = {"image_size": SPEC.size, **NAMES}  # a ResNet's configuration does not know its size
        models["resnet"] = ResNetForImageClassification(
            ResNetConfig(
                embedding_size=16, hidden_sizes=[16, 32, 64], depths=[1, 1, 1], layer_type="basic", **extra
            )
        )  # fmt: skip
        models["vit"] = ViTForImageClassification(
            ViTConfig(
                image_size=SPEC.size, patch_size=4, hidden_size=48, num_hidden_layers=3, num_attention_heads=3,
                intermediate_size=96, initializer_range=0.1, **NAMES,
            )
        )  # fmt: skip
        for name, model in models.items():
            fit(name, model, *train, recipes[name], log)
    torch.set_num_threads(threads)
    return models


def fit(name: str, model: nn.Module, pixels: Tensor, labels: Tensor, recipe: Recipe, log: Log) -> None:
    """AdamW, a tenth of warm-up, cosine; images shifted by up to 4 pixels; leaves the model in eval mode."""
    rng = torch.Generator().manual_seed(0)
    steps = recipe.epochs * (len(pixels) // recipe.size)
    optimizer = torch.optim.AdamW(model.parameters(), recipe.lr, weight_decay=recipe.decay, fused=True)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 10, steps)
    begin, recent = time.time(), []
    bordered = F.pad(pixels, (4, 4, 4, 4), value=float(pixels.min()))
    model.train()
    for step in range(1, steps + 1):
        if (step - 1) % (len(pixels) // recipe.size) == 0:
            order = torch.randperm(len(pixels), generator=rng).split(recipe.size)
        chosen = order[(step - 1) % (len(pixels) // recipe.size)]
        down, right = torch.randint(0, 9, (2,), generator=rng).tolist()
        shifted = bordered[chosen, :, down : down + SPEC.size, right : right + SPEC.size]
        loss = F.cross_entropy(model(pixel_values=shifted).logits, labels[chosen], label_smoothing=0.05)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        recent.append(loss.item())
        if step * 5 // steps > (step - 1) * 5 // steps:
            log(f"{name}: step {step}/{steps}  loss {sum(recent) / len(recent):.3f}  {time.time() - begin:.0f} s")
            recent.clear()
    model.eval()


if __name__ == "__main__":
    with told():
        prepare()
