"""What the recipes quantize: each answers the keyword arguments of `zsaq.quantize` for it, `model` among them.

Data serves the scores alone; real data serves the rows that end in "-real", which are not zero-shot.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageClassification, AutoModelForSequenceClassification

from examples import cifar, digits, embedded, imagenet
from zsaq.eval import scorers
from zsaq.eval.imagenet import batches
from zsaq.eval.images import ImageSource, class_order, open_pictures
from zsaq.eval.perplexity import tokenize
from zsaq.eval.pretrained import load_model, load_with_tokenizer
from zsaq.eval.reading import read_text
from zsaq.eval.tasks import HUB, Task, find_task, read_rows
from zsaq.language.text import Text
from zsaq.run import Data
from zsaq.train.logging import say
from zsaq.vision.models import classifier as wrapped
from zsaq.vision.models import spec_of

Subject = dict[str, Any]
REAL_TEXT: Final = 4_000_000  # characters of it that are read


def python_docs(accelerator: Accelerator, generator: str | None = None) -> Subject:
    """The embedded default, no download: a BERT that tells parts of Python apart, and an OPT, its generator."""
    with accelerator.main_process_first():
        teachers = embedded.prepare()
    task = Task("python", ("sentence",), tuple(teachers.names), ("accuracy",), "python")
    teacher, writer = teachers.teacher.to(accelerator.device), (teachers.generator, teachers.tokenizer)
    return {
        "model": teacher, "tokenizer": teachers.tokenizer, "generator": generator or writer,
        "score": scorers.glue(task, teacher, teachers.tokenizer, rows=teachers.test, accelerator=accelerator),
        "data": Data("CPython's documentation", split="test"), "real": lambda: teachers.unlabeled,
    }  # fmt: skip


def glue(
    accelerator: Accelerator, teacher: str, task: str, data_dir: str | None, split: str, generator: str | None
) -> Subject:
    """A BERT-type teacher of a GLUE task; folders and Hub ids alike."""
    spec = find_task(task)
    model, tokenizer = load_with_tokenizer(teacher, AutoModelForSequenceClassification)
    model.to(accelerator.device)  # pyright: ignore[reportArgumentType]

    def real() -> list[str] | list[tuple[str, ...]]:
        rows = [tuple(row[column] for column in spec.columns) for row in read_rows(spec, "train", data_dir)]
        return [row[0] for row in rows] if len(spec.columns) == 1 else rows

    hub = {} if data_dir else {"id": HUB, "task": spec.config}
    return {
        "model": teacher, "tokenizer": tokenizer, "generator": generator, "text_pair": len(spec.columns) == 2,
        "score": scorers.glue(spec, model, tokenizer, data_dir=data_dir, split=split, accelerator=accelerator),
        "data": Data(f"GLUE {task}", split=split, **hub), "real": real,
    }  # fmt: skip


def causal(
    accelerator: Accelerator, teacher: str, text: str, window: int, max_windows: int | None, separator: str | None,
    generator: str | None, real_text: str | None = None,
) -> Subject:  # fmt: skip
    """A causal teacher, measured by perplexity on `text`; its generator is itself unless another is named."""
    if real_text is not None and not Path(real_text).is_file():
        raise ValueError(f"--real_text is {real_text!r}, and there is no such file: give a UTF-8 text file")
    model, tokenizer = load_with_tokenizer(teacher, AutoModelForCausalLM)
    model.to(accelerator.device).float()  # pyright: ignore[reportArgumentType]

    def real() -> Text:
        """Rows as long as synthetic ones, cut from the running text."""
        assert real_text is not None
        whole = read_text(real_text)
        if len(whole) > REAL_TEXT:
            say(f"{real_text}: the first {REAL_TEXT:,} of {len(whole):,} characters are read")
        stream = tokenize(tokenizer, whole[:REAL_TEXT], None)
        length = min(128, window - 2)
        rows = stream[: len(stream) // length * length].view(-1, length)
        return Text(rows, torch.ones_like(rows, dtype=torch.bool))

    options = {"window": window, "max_windows": max_windows, "separator": separator, "accelerator": accelerator}
    return {
        "model": teacher, "tokenizer": tokenizer, "generator": generator, "data": Data(Path(text).name),
        "score": scorers.text(text, model, tokenizer, **options), "real": real if real_text else None,
    }  # fmt: skip


def scans(accelerator: Accelerator, which: str) -> Subject:
    """The embedded default of vision, which downloads nothing: "resnet" or "vit" on scans of handwritten digits."""
    with accelerator.main_process_first():
        teachers = digits.prepare()
    teacher = {"resnet": teachers.resnet, "vit": teachers.vit}[which]
    return {
        "model": teacher, "processor": digits.PROCESSOR, "real": lambda: teachers.train[0],
        "score": scorers.images(split(*teachers.test), teacher),
        "data": Data("scikit-learn's handwritten digits", split="test"),
    }  # fmt: skip


def cifar10(weights: str, test: list[str], real: str | None = None) -> Subject:
    """A CIFAR ResNet (examples/cifar.py) on one or several parquet files of test images."""
    if real:
        open_pictures(ImageSource(real))  # refused before anything is run; read when a row asks
    parts = [cifar.test_images(path) for path in test]
    teacher = wrapped(cifar.load_resnet(weights))
    images = split(torch.cat([pixels for pixels, _ in parts]), torch.cat([labels for _, labels in parts]))
    name = f"{Path(weights).stem} on {', '.join(Path(path).stem for path in test)}"
    return {
        "model": teacher, "spec": cifar.SPEC, "score": scorers.images(images, teacher), "data": Data(name),
        "real": (lambda: cifar.test_images(real)[0]) if real else None,
    }  # fmt: skip


def photos(
    net: imagenet.Net, weights: str, test: list[str], real: str | None = None, limit: int | None = None, size: int = 224
) -> Subject:
    """A net of `imagenet.NETS` on the first `limit` images of each of the parquet files, `size` pixels wide, which are
    read as they are scored."""
    if real:
        open_pictures(ImageSource(real))  # refused before anything is run; read when a row asks
    teacher, processor = net.load(weights, size), net.processor(size)

    def images() -> Iterator[Mapping[str, Tensor]]:
        return (batch for path in test for batch in imagenet.stream(path, processor, limit))

    def shown() -> Tensor:
        assert real is not None
        return torch.cat([batch["pixel_values"] for batch in imagenet.stream(real, processor)])

    of, first = ", ".join(Path(path).stem for path in test), f", first {limit}" if limit else ""
    name = f"{Path(weights).stem} on {of}{first}" + (f", {size} pixels" if size != 224 else "")
    return {
        "model": teacher, "spec": spec_of(teacher, size), "processor": processor,
        "data": Data(name) if test else None, "score": scorers.images(images, teacher) if test else None,
        "real": shown if real else None,
    }  # fmt: skip


def pictures(
    accelerator: Accelerator,
    teacher: str,
    processor: Any,
    test: ImageSource | None = None,
    real: ImageSource | None = None,
) -> Subject:
    """A transformers classifier, folder or Hub id; `processor` gives size and normalisation of what it is shown."""
    dataset = open_pictures(real) if real else None
    model = load_model(teacher, AutoModelForImageClassification)
    score = scorers.pictures(test, model.config, processor, model, accelerator=accelerator) if test else None
    name = Path(os.path.expanduser(test.data)) if test else None
    hub = None if name is None or name.exists() else test and test.data

    def shown() -> Tensor:
        assert dataset is not None
        order, _ = class_order(dataset.names, model.config)
        mode = "L" if model.config.to_dict().get("num_channels", 3) == 1 else "RGB"
        transform = lambda image: processor(images=image.convert(mode), return_tensors="pt")["pixel_values"][0]  # noqa: E731
        return torch.cat([batch["pixel_values"] for batch in batches(dataset, transform, order, 64, (0, 1), 4)])

    return {
        "model": teacher, "processor": processor, "score": score, "real": shown if real else None,
        "data": Data(name.name, hub, split=test.split) if test and name else None,
    }  # fmt: skip


def split(pixels: Tensor, labels: Tensor, size: int = 250) -> Callable[[], Iterator[Mapping[str, Tensor]]]:
    """Images [N, C, S, S] and labels [N], `size` at a time, as often as asked."""
    pairs = list(zip(pixels.split(size), labels.split(size), strict=True))
    return lambda: ({"pixel_values": x, "labels": y} for x, y in pairs)
