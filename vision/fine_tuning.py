"""A student fine-tuned on crops of images that were made once, or on batches of one's own."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from zsaq.quant.ranges import known
from zsaq.train.amounts import check_counts
from zsaq.train.loop import Loop
from zsaq.train.objectives import KL, Objective
from zsaq.train.pair import Batch
from zsaq.train.trainer import calibrate, distill
from zsaq.vision.beginning import Start, begun
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.models import classifier
from zsaq.vision.papers.gdfq import sgd
from zsaq.vision.sources.crops import minibatches, views

Model = TypeVar("Model", bound=nn.Module)


def fine_tune(
    student: Model, teacher: nn.Module, images: Batch, objective: Objective, *, steps: int, lr: float, batch_size: int,
    seed: int = 0, loop: Loop | None = None, batches: Iterable[Batch] | None = None,
    ranges: Iterable[Batch] | None = None,
) -> Model:  # fmt: skip
    """Static ranges first, if it has none, then `steps` steps of SGD (Nesterov 0.9, decay 1e-4); returns the student.

    It is trained on `batches`, by default endless crops (half to all of the area) and flips of `images`; the learning
    rate follows `loop.schedule`. Ranges are those of `images`, or of the `ranges` given; the papers take a GDFQ
    generator's images for that and throw it away. Raises ValueError as `zsaq.calibrate` and `zsaq.distill` do.
    """
    check_counts(steps=steps, batch_size=batch_size)
    loop = loop or Loop()
    if not known(student):
        calibrate(student, minibatches(images, batch_size) if ranges is None else ranges, loop.accelerator)
    batches = views(images, batch_size, seed) if batches is None else batches
    return distill(student, teacher, batches, objective, sgd(student, lr), steps, loop)


def on_batches(
    teacher: nn.Module, config: Start, spec: ImageSpec, images: Batch | Iterable[Batch], *, steps: int = 20_000,
    batch_size: int = 16, calibration: int = 100, lr: float = 1e-6, seed: int = 0, loop: Loop | None = None,
    folder: Path | None = None,
) -> nn.Module:  # fmt: skip
    """A student fine-tuned on `images` of one's own by T^2 KL, T = 20, with the optimizer of `fine_tune`; no labels.

    One batch is cut into crops of `batch_size`, as `fine_tune` does. Batches are taken as they come, over and over,
    those of an iterator once; the first `calibration` set the static ranges. `folder` is not used. Raises ValueError
    for batches without pixel_values [B, C, S, S] of the `spec`, and as `zsaq.calibrate` and `zsaq.distill` do.
    """
    check_counts(steps=steps, batch_size=batch_size)
    check_counts(0, calibration=calibration)
    teacher, loop = classifier(teacher), loop or Loop()
    student = begun(teacher, config)
    if isinstance(images, Mapping):
        batch = shown(images, spec)
        return fine_tune(
            student, teacher, batch, KL(20.0), steps=steps, lr=lr, batch_size=batch_size, seed=seed, loop=loop,
            ranges=islice(minibatches(batch, batch_size), calibration),
        )  # fmt: skip
    stream = (shown(batch, spec) for batch in again(images))
    first = list(islice(stream, calibration))
    if not known(student):
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


def shown(batch: Any, spec: ImageSpec) -> Batch:
    """The pixels of a batch alone. Raises ValueError for what is no batch of images of this spec."""
    pixels = batch.get("pixel_values") if isinstance(batch, Mapping) else None
    size = (spec.channels, spec.size, spec.size)
    if not isinstance(pixels, Tensor) or tuple(pixels.shape[1:]) != size:
        what = tuple(pixels.shape) if isinstance(pixels, Tensor) else type(batch).__name__
        raise ValueError(f"a batch is {what}; give mappings with pixel_values [B, {', '.join(map(str, size))}]")
    return {"pixel_values": pixels.detach()}
