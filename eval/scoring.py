"""Score a classification or regression model in memory on rows of a GLUE task, alone and against its teacher."""

from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zsaq.eval.chance import below_chance, below_zero
from zsaq.eval.gathering import gather_rows, share
from zsaq.eval.metrics import METRICS, accuracy, kl, pearson
from zsaq.eval.suiting import counts, covers, logits_of, reads
from zsaq.eval.tasks import Example, Task, find_task, label_order, targets
from zsaq.quant.modes import evaluating
from zsaq.quant.positions import longest


@torch.no_grad()
def predict(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task | str,
    rows: Sequence[Example],
    *,
    order: Sequence[int] | None = None,
    batch_size: int = 64,
    max_length: int = 128,
    accelerator: Accelerator | None = None,
) -> Tensor:
    """Logits of all rows in one pass: float32 (n, labels) on the CPU, rows in order, columns in GLUE's label order.

    Batches hold sentences of like length and are padded no further than their longest. The model is used where it is,
    in evaluation mode, and the modes of its modules are put back; no random state is touched. With an `accelerator` of
    several processes all of them must call this; each runs its share and all return the whole.

    `order` overrides the label order read from the model's config. Raises `ValueError` for rows or a config that do
    not fit the task, for sizes that are no counts, tokens that the model does not know, and logits that are nan.
    """
    task = find_task(task)
    targets(task, rows)
    reads(model, "input_ids", "a task of texts")
    order = label_order(task, model.config)[0] if order is None else order
    counts(batch_size=batch_size, max_length=max_length)
    encoded = tokenizer(*texts_of(task, rows), truncation=True, max_length=max_length)
    by_length = sorted(range(len(rows)), key=lambda i: len(encoded["input_ids"][i]), reverse=True)
    tokens = len(encoded["input_ids"][by_length[0]])
    limit = min(tokenizer.model_max_length, longest(model) or tokens)
    if tokens > limit:
        way = "lower max_length, or set model_max_length in its tokenizer_config.json"
        raise ValueError(f"{task.name}: an input has {tokens} tokens, the model takes {limit}: {way}")
    covers(model, [token for ids in encoded["input_ids"] for token in ids])
    batches = share([by_length[i : i + batch_size] for i in range(0, len(rows), batch_size)], accelerator)

    logits = [torch.empty(0, task.outputs, device=model.device)]
    with evaluating(model):
        for batch in batches:
            inputs = {name: [column[i] for i in batch] for name, column in encoded.items()}
            # Padding a tokenized batch is meant: tokenizing anew for every batch would not allow the sort by length.
            tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True
            output = model(**tokenizer.pad(inputs, return_tensors="pt").to(model.device))
            answer = logits_of(output, (len(batch),), type(model).__name__).float()
            if answer.shape[1] != task.outputs:
                raise ValueError(
                    f"{type(model).__name__} answers {answer.shape[1]} numbers, {task.name} has {task.outputs}"
                )
            logits.append(answer)

    result = gather_rows([i for batch in batches for i in batch], torch.cat(logits), len(rows), accelerator)
    if result.isnan().any():
        raise ValueError(f"{task.name}: {int(result.isnan().any(1).sum())} of {len(rows)} rows have nan logits")
    return result[:, list(order)]


def texts_of(task: Task, rows: Sequence[Example]) -> tuple[list[str], list[str] | None]:
    """The rows' sentences and, in a task of pairs, the second ones."""
    first, *second = [[row[column] for row in rows] for column in task.columns]
    return first, second[0] if second else None


def cut_note(
    tokenizer: PreTrainedTokenizerBase, task: Task, rows: Sequence[Example], max_length: int = 128
) -> str | None:
    """A note on the rows that `predict` cuts at `max_length` tokens, if there are any."""
    whole = tokenizer(*texts_of(task, rows), truncation=False, verbose=False)["input_ids"]
    cut = sum(len(ids) > max_length for ids in whole)
    return f"{cut} of {len(rows)} rows are longer than {max_length} tokens, and were cut" if cut else None


def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task | str,
    rows: Sequence[Example],
    teacher: PreTrainedModel | Tensor | None = None,
    *,
    batch_size: int = 64,
    max_length: int = 128,
    accelerator: Accelerator | None = None,
) -> dict[str, float]:
    """The task's metrics, their mean as "score" and, with a teacher, "agreement", "kl", "teacher_score" and so on.

    `teacher` is a model with the same tokenizer or, to save its pass when many students are compared, its logits from
    :func:`predict` on the same rows, shape (n, labels). All values are fractions; "kl" is the mean
    KL(teacher || student) in nats. Agreement is the share of equal arg max; for regression the Pearson correlation of
    the two predictions, and there is no "kl". Raises `ValueError` like :func:`predict`.
    """
    task = find_task(task)
    options = {"batch_size": batch_size, "max_length": max_length, "accelerator": accelerator}
    configs = [model.config] if teacher is None or isinstance(teacher, Tensor) else [model.config, teacher.config]
    logits = predict(model, tokenizer, task, rows, order=label_order(task, *configs)[0], **options)
    result = grade(task, rows, logits)
    if teacher is None:
        return result
    if not isinstance(teacher, Tensor):
        order, _ = label_order(task, *reversed(configs))
        teacher = predict(teacher, tokenizer, task, rows, order=order, **options)
    return result | compare_to_teacher(task, rows, logits, teacher)


def grade(task: Task, rows: Sequence[Example], logits: Tensor) -> dict[str, float]:
    """The task's metrics of logits (n, labels) in GLUE's label order, and their mean as "score"."""
    truth, guess = targets(task, rows).numpy(), _decide(task, logits)
    values = {name: METRICS[name](guess, truth) for name in task.metrics}
    return values | {"score": sum(values.values()) / len(values)}


def below(task: Task, numbers: Mapping[str, float], samples: int) -> list[str]:
    """Notes on those of the task's metrics that are worse than guessing."""
    notes = [
        below_chance(numbers[name], samples, len(task.labels)) if name == "accuracy"
        else below_zero(name, numbers[name], samples)
        for name in task.metrics if name != "f1"
    ]  # fmt: skip
    return [note for note in notes if note]


def compare_to_teacher(task: Task, rows: Sequence[Example], logits: Tensor, teacher: Tensor) -> dict[str, float]:
    """Agreement and KL of the student's logits to the teacher's, and the teacher's own metrics as "teacher_...".

    Raises `ValueError` for logits of different shapes.
    """
    if logits.shape != teacher.shape:
        raise ValueError(
            f"{task.name}: student's logits are {tuple(logits.shape)}, teacher's {tuple(teacher.shape)}: "
            "run both on the same rows"
        )
    guesses = _decide(task, logits), _decide(task, teacher)
    result = {f"teacher_{name}": value for name, value in grade(task, rows, teacher).items()}
    if not task.labels:
        return result | {"agreement": pearson(*guesses)}
    return result | {"agreement": accuracy(*guesses), "kl": kl(logits, teacher)}


def _decide(task: Task, logits: Tensor):
    return (logits.argmax(1) if task.labels else logits[:, 0]).numpy()
