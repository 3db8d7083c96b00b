"""ZSAQ on a BERT classifier: 2-bit weights, 8-bit inputs, no data.

    accelerate launch recipes/zsaq_bert_w2a8.py
    accelerate launch recipes/zsaq_bert_w2a8.py --teacher DIR_OR_ID --task sst2 --data_dir DIR --generator DIR_OR_ID

Without arguments it runs the embedded default, which downloads nothing: a small BERT that this machine trains once on
CPython's own documentation, and a small OPT that it trains on CPython's comments. --data_dir serves the scores alone.
Ends with a table, and a folder: the model, results.json, curves.png, and a JSON line for every step.
"""

import argparse
import json
import platform
import time
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from curves import draw
from job import Job, classifier, embedded, size
from methods import METHODS, Budget
from publishing import add_arguments, base_of, publish, recipe, watch
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

from zsaq import Loop, QuantConfig, coverage
from zsaq.io.checksums import seal
from zsaq.quant.plan import plan_of
from zsaq.train.optim import NotFinite
from zsaq.train.trainer import processes

PACKAGES = ("zsaq", "torch", "transformers", "accelerate")
ROWS = ("rtn-minmax", "rtn-searched", "zsaq")
HOUSEKEEPING = ("name", "score", "bytes", "seconds")  # of a row; the rest are metrics


def parser(text: str | None, bits: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Budget()
    made.add_argument(
        "--bits", default=bits, help="w<bits>a<bits>[g<group>][-half|-ternary|-integer] (default: %(default)s)"
    )
    made.add_argument(
        "--generator",
        help="OPT or any causal LM, folder or Hub id (default: facebook/opt-125m, or the teacher's own kind)",
    )
    made.add_argument(
        "--bridge",
        choices=["auto", "same", "vocabulary", "representation"],
        default="auto",
        help="from the generator's tokens to the teacher's",
    )
    made.add_argument("--steps", type=int, default=default.steps, help="student steps in all (default: %(default)s)")
    made.add_argument(
        "--warm", type=int, default=default.warm, help="of them layer by layer, before SAM-SGA (default: %(default)s)"
    )
    made.add_argument(
        "--lr",
        type=float,
        default=default.lr,
        help="student's learning rate, in steps of its grid (default: %(default)s)",
    )
    made.add_argument(
        "--rho",
        type=float,
        default=default.rho,
        help="SAM's radius, in steps of the grid; 0 takes plain steps (default: %(default)s)",
    )
    made.add_argument(
        "--generator_lr", type=float, default=default.generator_lr, help="generator's (default: %(default)s)"
    )
    made.add_argument(
        "--lora", action="store_true", help="train low-rank adapters of the generator only (peft; with --generator)"
    )
    made.add_argument("--eight_bit", action="store_true", help="the generator's AdamW in 8 bits (bitsandbytes)")
    made.add_argument(
        "--teacher_bits", type=int, choices=[8, 4], help="let the teacher answer in 8 or 4 bits (bitsandbytes)"
    )
    made.add_argument("--seed", type=int, default=0)
    made.add_argument(
        "--mixed_precision", choices=["no", "bf16"], default=None, help="as accelerate's (default: its own)"
    )
    made.add_argument("--trackers", nargs="*", default=[], help="accelerate's trackers by name, such as tensorboard")
    made.add_argument("--output_dir", default=None, help="default: outputs/<recipe>")
    add_arguments(made)
    return made


def parse(made: argparse.ArgumentParser) -> argparse.Namespace:
    """What can be checked before minutes of work is."""
    args = made.parse_args()
    try:
        QuantConfig.parse(args.bits)
    except ValueError as error:
        made.error(str(error))
    if not 0 <= args.warm < args.steps:
        made.error(f"--warm is {args.warm} of --steps {args.steps}: give 0 or more, and fewer than steps")
    return args


def run(job: Job, args: argparse.Namespace, name: str, accelerator: Accelerator) -> None:
    """Every row, the table and the output folder."""
    config = QuantConfig.parse(args.bits)
    budget = Budget(args.steps, args.warm, args.lr, rho=args.rho, generator_lr=args.generator_lr)
    folder = Path(args.output_dir)
    base, reads = base_of(args, args.teacher), watch(job)
    job.bridge, job.style = args.bridge, {"eight_bit": args.eight_bit}
    if args.teacher_bits:
        job.answer_in(args.teacher_bits, args.teacher)
    loop = Loop(accelerator, folder=folder)
    accelerator.init_trackers(name, vars(args) | {"trackers": str(args.trackers)})
    begin = time.perf_counter()
    rows = [{"name": "teacher", **job.measure(job.start), "agreement": 1.0, "bytes": size(job.start), "seconds": 0.0}]
    for row in ROWS:
        set_seed(args.seed)
        start = time.perf_counter()
        try:
            student = METHODS[row](job, config, budget, args.seed, loop)
        except NotFinite as error:
            keep(error, folder / "last-good", accelerator)
            raise
        seconds = time.perf_counter() - start
        rows.append({"name": row, **job.measure(student), "bytes": size(student), "seconds": round(seconds, 2)})
    accelerator.end_training()
    if not accelerator.is_main_process:
        return
    student.save_pretrained(folder)
    job.tokenizer.save_pretrained(folder)
    metrics = [key for key in rows[-1] if key not in HOUSEKEEPING and not key.startswith("teacher_")]
    results = {
        "method": ROWS[-1], "zero_shot": not reads, "metrics": {key: key for key in metrics}, "data": vars(job.data),
        "base": base and vars(base), "recipe": recipe(Path(__file__).with_name(f"{name}.py")),
        "rows": rows, "job": job.name, "config": plan_of(student).config.to_dict(),
        "budget": vars(budget), "seed": args.seed,
        "arguments": vars(args), "seconds": round(time.perf_counter() - begin, 2), "coverage": coverage(student),
        "versions": {p: version(p) for p in PACKAGES} | {"python": platform.python_version()},
        "processes": accelerator.num_processes, "device": str(accelerator.device), "threads": torch.get_num_threads(),
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results, indent=1))
    draw(folder)
    show(rows, job.name, args.bits, folder)
    seal(folder)
    if base is not None:
        print(publish(student, job.tokenizer, folder, base, args.push_to_hub))


def keep(error: NotFinite, folder: Path, accelerator: Accelerator) -> None:
    """Save the student as it was before a loss that is not finite, so that hours of work are not lost."""
    if isinstance(error.student, PreTrainedModel) and accelerator.is_main_process:
        error.student.save_pretrained(folder)
        print(f"the student as it was after its last good step is in {folder}")


def show(rows: list[dict], name: str, bits: str, folder: Path) -> None:
    table = Table(title=f"{name}, {bits}")
    columns = ("score", "agreement", "bytes", "seconds")
    for column in ("name", *columns):
        table.add_column(column, justify="left" if column == "name" else "right")
    for row in rows:
        table.add_row(
            row["name"], f"{row['score']:.4f}", f"{row['agreement']:.4f}", f"{row['bytes']:,}", f"{row['seconds']:.1f}"
        )
    Console().print(table)
    print(f"The model, results.json, curves.png and the steps' numbers are in {folder}")


def main(bits: str = "w2a8", name: str = "zsaq_bert_w2a8", text: str | None = __doc__) -> None:
    made = parser(text, bits)
    made.add_argument("--teacher", help="fine-tuned BERT-type model, folder or Hub id (default: the embedded one)")
    made.add_argument("--task", help="its GLUE task, for the scores: sst2, stsb, mrpc, ...")
    made.add_argument("--data_dir", help="folder with the task's validation split; default: the Hub's nyu-mll/glue")
    made.add_argument("--split", default="validation", help="split to score, or several: validation+test")
    args = parse(made)
    if (args.teacher is None) != (args.task is None) or (args.data_dir and not args.teacher):
        made.error("--teacher and --task go together, --data_dir with them; give none of them for the embedded default")
    if args.teacher is None and (args.teacher_bits or (args.lora and not args.generator)):
        made.error("--teacher_bits needs --teacher, --lora needs --generator: the embedded models are already small")
    args.output_dir = args.output_dir or f"outputs/{name}"
    accelerator = processes(args.trackers, mixed_precision=args.mixed_precision, project_dir=args.output_dir)
    if args.teacher is None:
        with accelerator.main_process_first():
            job = embedded(args.generator, args.lora)
    else:
        generator = args.generator or "facebook/opt-125m"
        job = classifier(args.teacher, args.task, args.data_dir, generator, args.split, accelerator, args.lora)
    run(job, args, name, accelerator)


if __name__ == "__main__":
    main()
