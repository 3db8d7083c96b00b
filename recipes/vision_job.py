"""What a vision recipe works on: a teacher, its spec, how a model is measured, and images that methods share."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import imagenet
import torch
from accelerate import Accelerator
from cifar import SPEC, load, test_images
from digits import PROCESSOR, prepare
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForImageClassification
from transformers.image_processing_backends import PilBackend

from zsaq.eval.imagenet import DEVIATION, MEAN, batches, score
from zsaq.eval.images import Source, class_order, read
from zsaq.eval.pretrained import load_model
from zsaq.report.card import Data
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.models import classifier, spec_of

T = TypeVar("T")
Numbers = tuple[float, ...]
Labelled = Mapping[str, Tensor]  # pixel_values [B, C, S, S] and labels [B]


@dataclass
class VisionJob:
    """`test()`: labelled images for what is reported, nothing else; with None nothing is. `real()`: unlabelled real
    images for the oracle, not read before it asks.

    `mean`, `deviation`: the teacher's normalisation, a number for each channel. `processor`: what is saved beside a
    student. `data`: what `test` reads. `accelerator`: given where `test` gives each process its share. `made`:
    synthetic images by name and seed, so that methods (and bit widths) that share them compare on the same.
    """

    name: str
    teacher: nn.Module
    spec: ImageSpec
    test: Callable[[], Iterable[Labelled]] | None
    real: Callable[[], Tensor] | None = None
    mean: Numbers = MEAN
    deviation: Numbers = DEVIATION
    processor: PilBackend | None = None
    data: Data | None = None
    accelerator: Accelerator | None = None
    made: dict[tuple[str, int], Any] = field(default_factory=dict)

    def once(self, name: str, seed: int, make: Callable[[], T]) -> T:
        """What `make` makes, the first time; then the same again."""
        if (name, seed) not in self.made:
            self.made[name, seed] = make()
        return self.made[name, seed]

    def measure(self, student: nn.Module) -> dict[str, float]:
        """Top-1 on the test images, agreement with the teacher and KL(teacher || student) in nats; {} without any."""
        if self.test is None:
            return {}
        self.teacher.to(next(student.parameters()).device)
        told = score(student, self.test(), self.teacher, accelerator=self.accelerator)
        return {"score": told["top1"], "agreement": told["agreement"], "kl": told["kl"]}


def split(pixels: Tensor, labels: Tensor, size: int = 250) -> Callable[[], Iterator[Labelled]]:
    """Images [N, C, S, S] and labels [N], `size` at a time, as often as asked."""
    pairs = list(zip(pixels.split(size), labels.split(size), strict=True))
    return lambda: ({"pixel_values": x, "labels": y} for x, y in pairs)


def normalisation(processor: PilBackend, channels: int) -> tuple[Numbers, Numbers]:
    """Mean and deviation that the processor normalises each channel by."""
    told = processor.to_dict()
    if not told["do_normalize"]:
        return (0.0,) * channels, (1.0,) * channels
    return tuple(told["image_mean"]), tuple(told["image_std"])


def digits(which: str) -> VisionJob:
    """The embedded default that downloads nothing: `which` is "resnet" or "vit"."""
    made = prepare()
    teacher = {"resnet": made.resnet, "vit": made.vit}[which]
    job = VisionJob(f"digits {which}", teacher, spec_of(teacher), split(*made.test), lambda: made.train[0])
    job.data = Data("scikit-learn's handwritten digits", split="test")
    job.processor, (job.mean, job.deviation) = PROCESSOR, normalisation(PROCESSOR, job.spec.channels)
    return job


def cifar(weights: str, test: list[str], real: str | None) -> VisionJob:
    """A CIFAR ResNet (recipes/cifar.py) on one or several parquet files of test images."""
    parts = [test_images(path) for path in test]
    images = split(torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts]))
    name = f"{Path(weights).stem} on {', '.join(Path(path).stem for path in test)}"
    return VisionJob(name, classifier(load(weights)), SPEC, images, (lambda: test_images(real)[0]) if real else None)


def mobilenet(weights: str, test: list[str], real: str | None, limit: int | None = None) -> VisionJob:
    """A MobileNetV2 (recipes/imagenet.py) on the first `limit` images of each of the parquet files."""

    def stream() -> Iterator[Labelled]:  # read as they are scored: 0.6 MB each
        return (batch for path in test for batch in imagenet.stream(path, limit))

    def shown() -> Tensor:
        assert real is not None
        return torch.cat([batch["pixel_values"] for batch in imagenet.stream(real)])

    name = f"{Path(weights).stem} on {', '.join(Path(path).stem for path in test)}"
    name += f", first {limit}" if limit else ""
    teacher = imagenet.load(weights)
    return VisionJob(name, teacher, imagenet.SPEC, stream, shown if real else None, processor=imagenet.PROCESSOR)


def pretrained(
    teacher: str, processor: PilBackend, accelerator: Accelerator, test: Source | None = None,
    real: Source | None = None, *, batch_size: int = 64, threads: int = 4,
) -> VisionJob:  # fmt: skip
    """A transformers classifier, folder or Hub id; `processor` gives size and normalisation of what it is shown.

    `test`: labelled images that are streamed for the score, each process its share; `real`: those of the oracle, read
    into memory when it asks. Raises ValueError for weights, images and labels that do not fit.
    """
    model = load_model(teacher, AutoModelForImageClassification)
    channels = model.config.to_dict().get("num_channels", 3)
    mode = "L" if channels == 1 else "RGB"

    def transform(image: Image.Image) -> Tensor:
        return processor(images=image.convert(mode), return_tensors="pt")["pixel_values"][0]

    def stream(source: Source, share: tuple[int, int]) -> Callable[[], Iterator[Labelled]]:
        pictures = read(source)
        order, note = class_order(pictures.names, model.config)
        if note:
            accelerator.print(note)
        return lambda: batches(pictures, transform, order, batch_size, share, threads)

    # A square picture: where a processor keeps proportions, specs are square all the same.
    spec = spec_of(model, transform(Image.new(mode, (256, 256))).shape[-1])
    own = accelerator.process_index, accelerator.num_processes
    job = VisionJob(teacher, model, spec, test and stream(test, own), processor=processor, accelerator=accelerator)
    job.mean, job.deviation = normalisation(processor, channels)
    if test:
        local = Path(test.data).expanduser()
        job.data = (
            Data(local.name, split=test.split) if local.exists() else Data(test.data, test.data, split=test.split)
        )
    if real:
        job.real = lambda: torch.cat([batch["pixel_values"] for batch in stream(real, (0, 1))()])
    return job
