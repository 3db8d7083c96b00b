"""What `zsaq.quantize` and `zsaq.compare` take as `score`: functions of a student that answer numbers by name.

Each holds its data and the teacher's answers; the first number is what tables show. They are reported and nothing else:
no method sees them.
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zsaq.eval import imagenet, perplexity, scoring
from zsaq.eval.images import ImageSource, class_order, open_pictures
from zsaq.eval.tasks import Example, Task, find_task, read_rows

Score = Callable[[Any], dict[str, float]]


def glue(
    task: str | Task, teacher: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase, *,
    rows: Sequence[Example] | None = None, data_dir: str | None = None, split: str = "validation",
    max_length: int = 128, accelerator: Accelerator | None = None,
) -> Score:  # fmt: skip
    """The task's metrics and, with a teacher, agreement and KL(teacher || student) in nats.

    `rows`, or those of `split` (or several: "validation+test") in `data_dir`, by default the Hub's. Raises ValueError
    as `zsaq.eval.scoring` does.
    """
    task = find_task(task)
    rows = read_rows(task, split, data_dir) if rows is None else rows
    options: dict[str, Any] = {"max_length": min(max_length, tokenizer.model_max_length), "accelerator": accelerator}
    answers = None if teacher is None else scoring.predict(teacher, tokenizer, task, rows, **options)

    def score(student: PreTrainedModel) -> dict[str, float]:
        numbers = scoring.score(student, tokenizer, task, rows, answers, **options)
        if len(task.metrics) == 1:
            del numbers["score"]  # the mean over one metric
        return {name: value for name, value in numbers.items() if not name.startswith("teacher_")}

    return score


def text(
    path: str | Path, teacher: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase, *, window: int = 256,
    max_windows: int | None = None, separator: str | None = None, accelerator: Accelerator | None = None,
) -> Score:  # fmt: skip
    """Perplexity of a text file by the convention "gptq", agreement and KL of the next token. Raises ValueError as
    `zsaq.eval.perplexity` does, and for a path that is no file."""
    if not Path(path).is_file():
        raise ValueError(f"{path} is no file: give a UTF-8 text file")
    ids = perplexity.tokenize(tokenizer, Path(path).read_text(encoding="utf-8"), separator)

    def score(student: PreTrainedModel) -> dict[str, float]:
        numbers = perplexity.perplexity(
            student, ids, window, teacher=teacher, max_windows=max_windows, accelerator=accelerator
        )
        return {name: numbers[name] for name in ("perplexity", "agreement", "kl") if name in numbers}

    return score


def images(
    batches: Callable[[], Iterable[Mapping[str, Tensor]]], teacher: nn.Module | None = None, *,
    accelerator: Accelerator | None = None,
) -> Score:  # fmt: skip
    """Top-1 and, with a teacher, agreement and KL(teacher || student) in nats, on labelled images, which `batches()`
    gives as often as asked. Raises ValueError as `zsaq.eval.imagenet.score` does."""

    def score(student: nn.Module) -> dict[str, float]:
        if teacher is not None:
            teacher.to(next(student.parameters()).device)
        numbers = imagenet.score(student, batches(), teacher, accelerator=accelerator)
        shown = {"accuracy": "top1", "agreement": "agreement", "kl": "kl", "top5": "top5"}
        return {name: numbers[key] for name, key in shown.items() if key in numbers}

    return score


def pictures(
    source: ImageSource, config: Any, processor: Any, teacher: nn.Module | None = None, *, limit: int | None = None,
    batch_size: int = 64, threads: int = 4, accelerator: Accelerator | None = None,
) -> Score:  # fmt: skip
    """`images` of a folder, parquet files or the Hub, streamed anew for each student; each process takes its share.

    `config`: the model's, whose label names give the order of classes; `processor`: of its images; `limit`: the first
    so many. What is assumed about the order of classes is told on stderr. Raises ValueError for labels that do not fit.
    """
    mode = "L" if config.to_dict().get("num_channels", 3) == 1 else "RGB"
    share = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)

    def transform(image: Image.Image) -> Tensor:
        return processor(images=image.convert(mode), return_tensors="pt")["pixel_values"][0]

    def batches() -> Iterable[Mapping[str, Tensor]]:
        found = open_pictures(source)
        order, note = class_order(found.names, config)
        if note and share[0] == 0:
            print(note, file=sys.stderr)
        return imagenet.batches(islice(found, limit), transform, order, batch_size, share, threads)

    return images(batches, teacher, accelerator=accelerator)
