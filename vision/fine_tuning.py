"""What the "direct" methods share: images optimised from noise once, a student fine-tuned on crops of them; and a
student fine-tuned on batches of one's own."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from zsaq.quant.config import QuantConfig
from zsaq.quant.model import quantize_model
from zsaq.train.objectives import KL, Objective
from zsaq.train.pair import Batch
from zsaq.train.synthesis import Synthesizer, stream
from zsaq.train.trainer import Loop, calibrate, distill
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.models import classifier
from zsaq.vision.papers.gdfq import sgd
from zsaq.vision.pictures import album
from zsaq.vision.sources.crops import views
from zsaq.vision.sources.pixels import Cropped, Pixels, uniform_labels

Model = TypeVar("Model", bound=nn.Module)


def noise_images(
    teacher: nn.Module, objective: Objective, spec: ImageSpec, *, images: int = 5120, batch_size: int = 256,
    steps: int = 1000, lr: float = 0.5, least: float = 1e-4, patience: int = 50, crops: float = 0.0,
    scale: tuple[float, float] = (0.5, 1.0), labels: Tensor | None = None, seed: int = 0,
    finished: Callable[[Batch], object] | None = None, folder: Path | None = None, stage: str = "images",
) -> Batch:  # fmt: skip
    """`images` images from N(0, 1), `batch_size` at a time, each batch optimised alone; the optimizer of IntraQ.

    Adam for `steps` steps a batch, the learning rate / 10 whenever the loss has not fallen for `patience` steps, not
    below `least`. Shorter runs keep the published patience, and so, as a rule, the rate: the loss rises at first, for
    10 steps or so in a run of any length, and 0.5 a step is what brings it down again. With HAST's objective for
    CIFAR-10 (ResNet-20, 64 images, 100 steps) it ends at 1.0; with a patience of 5, 50's share of the steps, at 112;
    with the rate / 10 after 70 and 90 steps at 1.6, with a cosine at 3.0, with 0.1 from the start at 1.8.

    In a share `crops` of the steps the objective sees random crops of `scale` (IntraQ's local object reinforcement).
    `labels` int64 [images], by default uniformly drawn. `finished` is told each batch when it is done;
    `folder` is where pictures go. Answers pixel_values float [images, C, S, S] and labels, on the teacher's device.
    Raises ValueError for numbers below 1, labels of another length and losses that are not finite.
    """
    labels = uniform_labels(images, spec, seed) if labels is None else labels
    if min(images, batch_size, steps, patience) < 1 or len(labels) != images:
        raise ValueError(
            f"images is {images}, batch_size {batch_size}, steps {steps}, patience {patience}, with {len(labels)} "
            "labels; give at least 1 of each, and a label for each image"
        )
    batches: list[Batch] = []
    losses: list[float] = []
    for turn, part in enumerate(labels.split(batch_size)):
        pixels = Pixels(len(part), spec, part, seed=stream(seed, turn))
        pixels.to(next(teacher.parameters()).device)
        source = Cropped(pixels, scale, crops, stream(seed, turn)) if crops else pixels
        adam = torch.optim.Adam([pixels.pixels], lr)
        plateau = ReduceLROnPlateau(adam, factor=0.1, patience=patience, min_lr=least)
        synthesizer = Synthesizer(
            source, objective, adam, teacher, scheduler=plateau, stage=f"{stage}, batch {turn + 1}"
        )
        for _ in range(steps):
            next(synthesizer)
        batches.append({name: value.detach() for name, value in pixels().items()})
        losses += synthesizer.losses
        if finished is not None:
            finished(batches[-1])
    batch = {name: torch.cat([part[name] for part in batches]) for name in batches[0]}
    if folder is not None:
        album(batch, folder, losses)
    return batch


def fine_tune(
    student: Model, teacher: nn.Module, images: Batch, objective: Objective, *, steps: int, lr: float, batch_size: int,
    seed: int = 0, loop: Loop | None = None, batches: Iterable[Batch] | None = None,
    ranges: Iterable[Batch] | None = None,
) -> Model:  # fmt: skip
    """Static ranges first, then `steps` steps of SGD (Nesterov 0.9, decay 1e-4); returns the student.

    It is trained on `batches`, by default endless crops (half to all of the area) and flips of `images`; the learning
    rate follows `loop.schedule`. Ranges are those of `images`, or of the `ranges` given; the papers take a GDFQ
    generator's images for that and throw it away. Raises ValueError as `zsaq.calibrate` and `zsaq.distill` do.
    """
    loop = loop or Loop()
    calibrate(student, parts(images, batch_size) if ranges is None else ranges, loop.accelerator)
    batches = views(images, batch_size, seed) if batches is None else batches
    return distill(student, teacher, batches, objective, sgd(student, lr), steps, loop)


def parts(images: Batch, batch_size: int) -> Iterator[Batch]:
    """`images` as they are, once, `batch_size` at a time."""
    for start in range(0, len(images["pixel_values"]), batch_size):
        yield {name: value[start : start + batch_size] for name, value in images.items()}


def on_batches(
    teacher: nn.Module, config: QuantConfig, spec: ImageSpec, images: Batch | Iterable[Batch], *, steps: int = 20_000,
    batch_size: int = 16, calibration: int = 100, lr: float = 1e-6, seed: int = 0, loop: Loop | None = None,
    folder: Path | None = None,
) -> nn.Module:  # fmt: skip
    """A student fine-tuned on `images` of one's own by T^2 KL, T = 20, with the optimizer of `fine_tune`; no labels.

    One batch is cut into crops of `batch_size`, as `fine_tune` does. Batches are taken as they come, over and over,
    those of an iterator once; the first `calibration` set the static ranges. Raises ValueError for batches without
    pixel_values [B, C, S, S] of the `spec`, and as `zsaq.calibrate` and `zsaq.distill` do.
    """
    teacher, loop = classifier(teacher), loop or Loop()
    student = quantize_model(teacher, config)
    if isinstance(images, dict):
        batch = shown(images, spec)
        return fine_tune(
            student, teacher, batch, KL(20.0), steps=steps, lr=lr, batch_size=batch_size, seed=seed, loop=loop,
            ranges=islice(parts(batch, batch_size), calibration),
        )  # fmt: skip
    stream = (shown(batch, spec) for batch in again(images))
    first = list(islice(stream, calibration))
    calibrate(student, first, loop.accelerator)
    return distill(student, teacher, chain(first, stream), KL(20.0), sgd(student, lr), steps, loop)


def again(batches: Iterable[Batch]) -> Iterator[Batch]:
    """`batches` over and over; of an iterator, which cannot start anew, and of what is empty, once."""
    while True:
        batch = None
        for batch in batches:
            yield batch
        if batch is None or isinstance(batches, Iterator):
            return


def shown(batch: Batch, spec: ImageSpec) -> Batch:
    """The pixels of a batch alone. Raises ValueError for what is no batch of images of this spec."""
    pixels = batch.get("pixel_values") if isinstance(batch, Mapping) else None
    size = (spec.channels, spec.size, spec.size)
    if not isinstance(pixels, Tensor) or tuple(pixels.shape[1:]) != size:
        what = tuple(pixels.shape) if isinstance(pixels, Tensor) else type(batch).__name__
        raise ValueError(f"a batch is {what}; give mappings with pixel_values [B, {', '.join(map(str, size))}]")
    return {"pixel_values": pixels}
