"""GLUE: `python eval/glue.py --model DIR_OR_ID --task sst2 [--data_dir DIR] [--teacher DIR_OR_ID]`.

Also under `accelerate launch` and `torchrun`. Prints a table, then a JSON object as the last line.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForSequenceClassification

from zsaq.atomic import check_file, write_text
from zsaq.eval.metrics import METRICS
from zsaq.eval.pretrained import load_with_tokenizer
from zsaq.eval.scoring import below, compare_to_teacher, cut_note, grade, predict
from zsaq.eval.tasks import TASKS, Task, find_task, label_order, read_rows
from zsaq.script import positive, told
from zsaq.train.loop import processes

AVERAGES = (
    "average_9 counts MNLI matched and mismatched as two entries, average_8 as one (their mean); in both, a task with "
    "two metrics enters with their mean; given only when all eight tasks were run"
)


def averages(scores: Mapping[str, float]) -> dict[str, float]:
    """Both conventions of the GLUE average, see `AVERAGES`; empty unless every task has a score."""
    if set(scores) != set(TASKS):
        return {}
    total, mnli = sum(scores.values()), scores["mnli"] + scores["mnli-mm"]
    return {"average_8": (total - mnli / 2) / 8, "average_9": total / 9}


def select(names: Sequence[str]) -> list[Task]:
    """The tasks named on the command line: "all" is the suite, "mnli" both of its entries. `ValueError` if unknown."""
    chosen: dict[str, Task] = {}
    for name in names:
        entries = {"all": list(TASKS), "mnli": ["mnli", "mnli-mm"]}.get(name, [name])
        chosen |= {entry: find_task(entry) for entry in entries}
    return list(chosen.values())


def evaluate_task(task: Task, args: argparse.Namespace, accelerator: Accelerator) -> dict[str, Any]:
    """One row of the table: metrics, and what a reader must know beside them."""
    rows = read_rows(task, args.split, args.data_dir)
    names = [name.replace("{task}", task.config) for name in (args.model, args.teacher) if name]
    pairs = [load_with_tokenizer(name, AutoModelForSequenceClassification) for name in names]
    configs = [model.config for model, _ in pairs]
    logits, notes = [], []
    for (model, tokenizer), known, who in zip(pairs, (configs, configs[::-1]), ("model", "teacher"), strict=False):
        order, note = label_order(task, *known)
        cut = cut_note(tokenizer, task, rows, args.max_length)
        notes += [f"{who}: {each}" for each in (note, cut) if each]
        logits.append(
            predict(
                model.to(accelerator.device),  # pyright: ignore[reportArgumentType]
                tokenizer,
                task,
                rows,
                order=order,
                batch_size=args.batch_size,
                max_length=args.max_length,
                accelerator=accelerator,
            )
        )
    result = grade(task, rows, logits[0])
    for who, answer in zip(("model", "teacher"), logits, strict=False):
        notes += [f"{who}: {note}" for note in below(task, grade(task, rows, answer), len(rows))]
    if args.teacher:
        result |= compare_to_teacher(task, rows, logits[0], logits[1])
    return result | {"samples": len(rows), "labels": list(task.labels), "notes": notes}


def table(report: Mapping[str, Any]) -> Table:
    """What a person sees: all values x 100, except KL (nats)."""
    view = Table("task", "samples", "metrics", "score", *(["agreement", "kl", "teacher"] if report["teacher"] else []))
    for name, row in report["tasks"].items():
        metrics = ", ".join(f"{metric} {100 * row[metric]:.2f}" for metric in METRICS if metric in row)
        cells = [name, str(row["samples"]), metrics, f"{100 * row['score']:.2f}"]
        if report["teacher"]:
            kl = f"{row['kl']:.4g}" if "kl" in row else "-"
            cells += [f"{100 * row['agreement']:.2f}", kl, f"{100 * row['teacher_score']:.2f}"]
        view.add_row(*cells)
    for name in ("average_8", "average_9"):
        if name in report:
            view.add_row(name, "", "", f"{100 * report[name]:.2f}")
    return view


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line; returns what it prints as JSON."""
    parser = argparse.ArgumentParser(description="Score a model on GLUE tasks, alone or against its teacher.")
    parser.add_argument("--model", required=True, help="folder or Hub id; {task} in it stands for the task's name")
    parser.add_argument("--teacher", help="the same for the model it came from: adds agreement, KL and its score")
    parser.add_argument("--task", nargs="+", required=True, help=f"any of {', '.join(TASKS)} (mnli: both), or all")
    parser.add_argument("--data_dir", help="holds [<task>/]<split>.parquet, .tsv or .jsonl; default: the Hub")
    parser.add_argument("--split", default="validation", help="a split, or several joined: validation+test")
    parser.add_argument("--batch_size", type=positive, default=64, help="sentences a batch on each process")
    parser.add_argument("--max_length", type=positive, default=128, help="tokens; longer inputs are truncated")
    parser.add_argument("--output", type=Path, help="also write the JSON to this file")
    args = parser.parse_args(argv)
    if args.output:
        check_file(args.output)

    tasks, accelerator = select(args.task), processes()
    settings = {name: vars(args)[name] for name in ("model", "teacher", "data_dir", "split", "max_length")}
    results = {task.name: evaluate_task(task, args, accelerator) for task in tasks}
    means = averages({name: row["score"] for name, row in results.items()})
    report = {**settings, "unit": "fraction; kl in nats", "tasks": results, **means, "averages": AVERAGES}
    if accelerator.is_main_process:
        print(f"{args.model}: GLUE {args.split} (x 100; kl in nats)")
        Console().print(table(report))
        print("".join(f"{name}: {note}\n" for name, row in results.items() for note in row["notes"]), end="")
        if args.output:
            write_text(args.output, json.dumps(report, indent=2) + "\n")
        print(json.dumps(report), flush=True)
    accelerator.end_training()
    return report


if __name__ == "__main__":
    with told():
        main()
