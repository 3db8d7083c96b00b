"""Image classification: `python eval/imagenet.py --model DIR_OR_ID --data_dir PATH_OR_ID [--teacher DIR_OR_ID]`.

Any data with any number of classes, not ImageNet alone. Also under `accelerate launch` and `torchrun`. Prints a
table, then a JSON object as the last line.
"""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import AutoModelForImageClassification

from zsaq.atomic import check_file, write_text
from zsaq.eval.batching import Batch, batches
from zsaq.eval.chance import below_chance
from zsaq.eval.gathering import gather_rows, ranks
from zsaq.eval.images import ImageSource, open_pictures
from zsaq.eval.labels import class_order
from zsaq.eval.metrics import kl_divergence
from zsaq.eval.pretrained import load_model
from zsaq.eval.processing import DEVIATION, MEAN, check_sized, processor_of
from zsaq.eval.remarks import Remarks
from zsaq.eval.suiting import reads
from zsaq.quant.modes import evaluating
from zsaq.script import positive, told
from zsaq.train.loop import processes
from zsaq.train.pair import run_model


def grade(logits: Tensor, labels: Tensor, teacher: Tensor | None = None) -> dict[str, Tensor]:
    """What is averaged over samples, each [B] float64: "top1", and "top5" of more than 5 classes; with the teacher's
    logits [B, C] also "teacher_top1", "teacher_top5", "agreement" (equal arg max) and "kl" (teacher || student, nats).

    Raises ValueError for labels outside of 0 ... C - 1, and for logits that are not finite.
    """
    if logits.ndim != 2:
        raise ValueError(f"the model answers logits of the shape {list(logits.shape)}: it is no classifier")
    classes = logits.shape[1]
    if labels.min() < 0 or labels.max() >= classes:
        wrong = labels[(labels < 0) | (labels >= classes)][0]
        raise ValueError(f"a label is {int(wrong)}, the model answers {classes} classes: give data of its classes")
    rows = {}
    for who, answer in (("", logits), ("teacher_", teacher)):
        if answer is None:
            continue
        if answer.shape != logits.shape:
            raise ValueError(f"the teacher answers {answer.shape[1]} classes, the model {classes}: they are no pair")
        if not answer.isfinite().all():
            raise ValueError(f"the {'teacher' if who else 'model'} answers nan or infinite logits: it is broken")
        for k in (1, 5) if classes > 5 else (1,):
            rows[f"{who}top{k}"] = (answer.topk(k).indices == labels[:, None]).any(1).double()
    if teacher is not None:
        rows["agreement"] = (logits.argmax(1) == teacher.argmax(1)).double()
        rows["kl"] = kl_divergence(logits.double(), teacher.double())
    return rows


@torch.no_grad()
def score(
    model: nn.Module,
    batches: Iterable[Batch],
    teacher: nn.Module | None = None,
    *,
    accelerator: Accelerator | None = None,
) -> dict[str, float]:
    """Means of `grade` over all samples, and their number as "samples".

    `batches` are of {"pixel_values": [B, ...], "labels": [B] int64}; with an accelerator each process gives its own,
    with the samples' numbers as "index" [B], where some may be left out, and all get the means of all. Models are used
    where they are, in eval mode, and the modes of their modules are put back. Raises ValueError like `grade`, and if
    there is no sample.
    """
    models = [m for m in (model, teacher) if m is not None]
    index, tables, names = [], [], []
    for each in models:
        reads(each, "pixel_values", "images")
    with evaluating(*models):
        for batch in batches:
            size = len(batch["labels"])
            device = next(model.parameters()).device
            answers = [run_model(m, {"pixel_values": batch["pixel_values"].to(device)}).logits for m in models]
            rows = grade(answers[0], batch["labels"].to(device), *answers[1:])
            names = list(rows)
            tables.append(torch.stack(list(rows.values()), 1))
            index += batch["index"].tolist() if "index" in batch else range(len(index), len(index) + size)
    counts = torch.tensor([len(index)], device=accelerator.device if accelerator else None)
    counts = cast(Tensor, accelerator.gather(counts)) if accelerator else counts
    if not counts.min():
        raise ValueError(f"the processes got {counts.tolist()} samples to score: give each at least one image")
    total = int(counts.sum())
    index = ranks(index, accelerator)
    means = gather_rows(index, torch.cat(tables), total, accelerator).mean(0)
    return {**dict(zip(names, means.tolist(), strict=True)), "samples": total}


def evaluate(args: argparse.Namespace, accelerator: Accelerator) -> dict[str, Any]:
    """What is reported of a model, and of its teacher beside it, but for the arguments."""
    names = [name for name in (args.model, args.teacher) if name]
    models = [load_model(name, AutoModelForImageClassification).to(accelerator.device) for name in names]  # pyright: ignore[reportArgumentType]
    processor = processor_of(names, args.size, args.resize, args.mean, args.std)
    pictures = open_pictures(ImageSource(args.data_dir, args.split, (args.image_column, args.label_column)))
    order, note = class_order(pictures.names, *(model.config for model in models))
    remarks = Remarks()
    mode = "L" if models[0].config.to_dict().get("num_channels", 3) == 1 else "RGB"

    def transform(image: Image.Image) -> Tensor:
        return processor(images=image.convert(mode), return_tensors="pt")["pixel_values"][0]

    share = accelerator.process_index, accelerator.num_processes
    stream = batches(pictures, transform, order, args.batch_size, share, args.threads, remarks)
    result = score(models[0], stream, *models[1:], accelerator=accelerator)
    notes = [*pictures.notes, *remarks.notes(pictures.name, accelerator), *([note] if note else [])]
    outputs = models[0].config.num_labels or 0
    for who in ("", "teacher_")[: len(models)]:
        if low := below_chance(result[f"{who}top1"], int(result["samples"]), outputs):
            notes.append(f"{'teacher' if who else 'model'}: {low}")
    settings = {
        "class": type(processor).__name__,
        "backend": processor.backend,
        **json.loads(processor.to_json_string()),
    }
    return {**result, "classes": outputs, "processor": settings, "notes": notes}


def table(report: Mapping[str, Any]) -> Table:
    """What a person sees: all values x 100, except KL (nats)."""
    view = Table("model", "samples", "top-1", "top-5", *(["agreement", "kl"] if report["teacher"] else []))

    def shown(name: str, scale: float = 100) -> str:
        return f"{scale * report[name]:.{2 if scale > 1 else 4}f}" if name in report else "-"

    both = [shown("agreement"), shown("kl", 1)] if report["teacher"] else []
    view.add_row(report["model"], str(report["samples"]), shown("top1"), shown("top5"), *both)
    if report["teacher"]:
        view.add_row(report["teacher"], str(report["samples"]), shown("teacher_top1"), shown("teacher_top5"))
    return view


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line; returns what it prints as JSON."""
    parser = argparse.ArgumentParser(description="Score an image classifier, alone or beside its teacher.")
    parser.add_argument("--model", required=True, help="folder or Hub id, quantized or not")
    parser.add_argument("--teacher", help="the same for the model it came from: adds agreement, KL and its accuracy")
    parser.add_argument("--data_dir", required=True, help="folder of class folders, parquet file or folder, or Hub id")
    parser.add_argument("--split", help="folder or start of file names in --data_dir; on the Hub: validation if absent")
    parser.add_argument("--image_column", default="image")
    parser.add_argument("--label_column", default="label")
    parser.add_argument("--size", type=positive, help="side in pixels of what the model is shown")
    parser.add_argument(
        "--resize", type=positive, help="the shorter side before the middle is cut out; default: --size"
    )
    parser.add_argument("--mean", type=float, nargs="+", default=MEAN, help="with --size; default: ImageNet's")
    parser.add_argument("--std", type=float, nargs="+", default=DEVIATION, help="with --size; default: ImageNet's")
    parser.add_argument("--batch_size", type=positive, default=64, help="images a batch on each process")
    parser.add_argument("--threads", type=positive, default=4, help="that decode images, on each process")
    parser.add_argument("--output", type=Path, help="also write the JSON to this file")
    args = parser.parse_args(argv)
    check_sized(parser, argv, args)
    if args.output:
        check_file(args.output)

    accelerator = processes()
    settings = {name: vars(args)[name] for name in ("model", "teacher", "data_dir", "split")}
    report = {**settings, "unit": "fraction; kl in nats", **evaluate(args, accelerator)}
    if accelerator.is_main_process:
        Console().print(table(report))
        print("".join(f"{note}\n" for note in report["notes"]), end="")
        if args.output:
            write_text(args.output, json.dumps(report, indent=2) + "\n")
        print(json.dumps(report), flush=True)
    accelerator.end_training()
    return report


if __name__ == "__main__":
    with told():
        main()
