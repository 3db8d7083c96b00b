"""What `zsaq.quantize` and `zsaq.compare` take as `score`: functions of a student that answer numbers by name.

Each holds its data and the teacher's answers; the first number is what tables show. They are reported and nothing else:
no method sees them. What is assumed of the data, and what of it is not read, is told once, by default on stderr.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, final

from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zsaq.eval import imagenet, perplexity, scoring
from zsaq.eval.chance import below_chance, below_zero, worse_than_uniform
from zsaq.eval.images import ImageSource, open_pictures
from zsaq.eval.labels import class_order
from zsaq.eval.metrics import pearson
from zsaq.eval.reading import read_text
from zsaq.eval.remarks import Remarks
from zsaq.eval.sts import Pairs, correlations, cut_note, read_pairs, similarities
from zsaq.eval.suiting import counts
from zsaq.eval.tasks import Example, Task, find_task, label_order, read_rows, targets
from zsaq.train.logging import say

Score = Callable[[Any], dict[str, float]]
Tell = Callable[[str], object]


@final
@dataclass(frozen=True)
class Once:
    """Notes, each told the first time: no part of what a score is known by."""

    tell: Tell = field(compare=False)
    said: set[str] = field(default_factory=set, compare=False)

    def __call__(self, *notes: str | None) -> None:
        for note in notes:
            if note and note not in self.said:
                self.said.add(note)
                self.tell(note)


def teller(tell: Tell, accelerator: Accelerator | None) -> Once:
    """Silent on all processes but the main one."""
    return Once(tell if accelerator is None or accelerator.is_main_process else lambda _: None)


def glue(
    task: str | Task, teacher: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase, *,
    rows: Sequence[Example] | None = None, data_dir: str | None = None, split: str = "validation",
    max_length: int = 128, accelerator: Accelerator | None = None, tell: Tell = say,
) -> Score:  # fmt: skip
    """The task's metrics and, with a teacher, agreement and KL(teacher || student) in nats.

    `rows`, or those of `split` (or several: "validation+test") in `data_dir`, by default the Hub's. Raises ValueError
    as `zsaq.eval.scoring` does.
    """
    counts(max_length=max_length)
    task = find_task(task)
    rows = read_rows(task, split, data_dir) if rows is None else rows
    options: dict[str, Any] = {"max_length": min(max_length, tokenizer.model_max_length), "accelerator": accelerator}
    answers, once = None, teller(tell, accelerator)
    targets(task, rows)
    once(scoring.cut_note(tokenizer, task, rows, options["max_length"]))
    if teacher is not None:
        order, note = label_order(task, teacher.config)
        once(f"teacher: {note}" if note else None)
        answers = scoring.predict(teacher, tokenizer, task, rows, order=order, **options)

    def score(student: PreTrainedModel) -> dict[str, float]:
        order, note = label_order(task, student.config, *([] if teacher is None else [teacher.config]))
        logits = scoring.predict(student, tokenizer, task, rows, order=order, **options)
        numbers = scoring.grade(task, rows, logits)
        once(note, *scoring.below(task, numbers, len(rows)))
        if answers is not None:
            numbers |= scoring.compare_to_teacher(task, rows, logits, answers)
        if len(task.metrics) == 1:
            del numbers["score"]  # the mean over one metric
        return {name: value for name, value in numbers.items() if not name.startswith("teacher_")}

    return score


def text(
    path: str | Path, teacher: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase, *, window: int = 256,
    max_windows: int | None = None, separator: str | None = None, accelerator: Accelerator | None = None,
    tell: Tell = say,
) -> Score:  # fmt: skip
    """Perplexity of a text file by the convention "gptq", agreement and KL of the next token. Raises ValueError as
    `zsaq.eval.perplexity` does, and for a path that is no file of UTF-8 text."""
    ids, once = perplexity.tokenize(tokenizer, read_text(path), separator), teller(tell, accelerator)

    def score(student: PreTrainedModel) -> dict[str, float]:
        numbers = perplexity.perplexity(
            student, ids, window, teacher=teacher, max_windows=max_windows, accelerator=accelerator
        )
        once(perplexity.left_out(len(ids), window, int(numbers["windows"])))
        once(worse_than_uniform(numbers["perplexity"], student.config.get_text_config().vocab_size))
        return {name: numbers[name] for name in ("perplexity", "agreement", "kl") if name in numbers}

    return score


def sts(
    pairs: str | Path | Pairs, teacher: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase, *,
    split: str | None = None, limit: int | None = None, batch_size: int = 64, max_length: int | None = None,
    accelerator: Accelerator | None = None, tell: Tell = say,
) -> Score:  # fmt: skip
    """Spearman and Pearson correlation of the cosine of two texts' embeddings with the scores of `pairs`, a file or
    folder of them; with a teacher, "agreement" (the Pearson correlation of the two models' cosines) and "cosine" (the
    mean over texts of that of the student's embedding to the teacher's). Raises ValueError as `zsaq.eval.sts` does."""
    pairs = pairs if isinstance(pairs, Pairs) else read_pairs(pairs, split, limit)
    options: dict[str, Any] = {"batch_size": batch_size, "max_length": max_length, "accelerator": accelerator}
    once = teller(tell, accelerator)
    known = None if teacher is None else similarities(teacher, tokenizer, pairs, **options)[:2]

    def score(student: PreTrainedModel) -> dict[str, float]:
        cosines, vectors, cut = similarities(student, tokenizer, pairs, **options)
        numbers = correlations(cosines, pairs.scores)
        once(cut_note(cut, pairs), *(below_zero(name, value, len(pairs)) for name, value in numbers.items()))
        if known is not None:
            numbers["agreement"] = pearson(cosines.numpy(), known[0].numpy())
            numbers["cosine"] = float(cosine_similarity(vectors, known[1]).double().mean())
        return numbers

    return score


def images(
    batches: Callable[[], Iterable[Mapping[str, Tensor]]], teacher: nn.Module | None = None, *,
    accelerator: Accelerator | None = None, tell: Tell = say,
) -> Score:  # fmt: skip
    """Top-1 and, with a teacher, agreement and KL(teacher || student) in nats, on labelled images, which `batches()`
    gives as often as asked. Raises ValueError as `zsaq.eval.imagenet.score` does."""

    once = teller(tell, accelerator)

    def score(student: nn.Module) -> dict[str, float]:
        if teacher is not None:
            teacher.to(next(student.parameters()).device)
        numbers = imagenet.score(student, batches(), teacher, accelerator=accelerator)
        once(below_chance(numbers["top1"], int(numbers["samples"]), _classes(student)))
        shown = {"accuracy": "top1", "agreement": "agreement", "kl": "kl", "top5": "top5"}
        return {name: numbers[key] for name, key in shown.items() if key in numbers}

    return score


def pictures(
    source: ImageSource, config: Any, processor: Any, teacher: nn.Module | None = None, *, limit: int | None = None,
    batch_size: int = 64, threads: int = 4, accelerator: Accelerator | None = None, tell: Tell = say,
) -> Score:  # fmt: skip
    """`images` of a folder, parquet files or the Hub, streamed anew for each student; each process takes its share.

    `config`: the model's, whose label names give the order of classes; `processor`: of its images; `limit`: the first
    so many. Pictures that cannot be read are left out and told. Raises ValueError for labels that do not fit, and for
    sizes that are no counts.
    """
    counts(batch_size=batch_size, threads=threads)
    counts(optional=True, limit=limit)
    mode = "L" if config.to_dict().get("num_channels", 3) == 1 else "RGB"

    def transform(image: Image.Image) -> Tensor:
        return processor(images=image.convert(mode), return_tensors="pt")["pixel_values"][0]

    configs = [config, *([teacher.config] if isinstance(teacher, PreTrainedModel) else [])]
    found, remarks, once = open_pictures(source), Remarks(), teller(tell, accelerator)
    order, note = class_order(found.names, *configs)

    def batches() -> Iterable[Mapping[str, Tensor]]:
        remarks.clear()
        share = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
        return imagenet.batches(islice(found, limit), transform, order, batch_size, share, threads, remarks)

    numbers_of = images(batches, teacher, accelerator=accelerator, tell=tell)

    def score(student: nn.Module) -> dict[str, float]:
        once(*found.notes, note)
        numbers = numbers_of(student)
        once(*remarks.notes(found.name, accelerator))
        return numbers

    return score


def _classes(model: nn.Module) -> int:
    """How many the model's config tells; 0 of a plain module."""
    return getattr(getattr(model, "config", None), "num_labels", 0)
