"""Any vision method on any teacher that suits it, without data.

    accelerate launch recipes/vision_quantize.py
    accelerate launch recipes/vision_quantize.py --teacher digits-vit --method psaq --preset psaq --bits w8a8
    accelerate launch recipes/vision_quantize.py --teacher DIR_OR_ID --method synq --preset uniform --data_dir DATA

Without arguments it runs the embedded default, which downloads nothing: Genie at W2A4 on a small ResNet that this
machine trains once on scikit-learn's scans of handwritten digits. --data_dir serves the scores alone, and is read when
the students are done; without it nothing is scored. Ends with a table, and a folder: the model and its image processor,
results.json, pictures of what was synthesized, the loss curves, and a JSON line for every step.
"""

import argparse
import json
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from curves import draw
from job import size
from publishing import add_arguments, base_of, publish, recipe, watch
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel
from vision_compare import config_of
from vision_job import VisionJob, digits, pretrained
from vision_methods import METHODS, VisionBudget

from zsaq import Loop, coverage
from zsaq.eval.imagenet import DEVIATION, MEAN, processor_of
from zsaq.eval.images import Source
from zsaq.io.checksums import seal
from zsaq.quant.plan import plan_of
from zsaq.train.logging import SynthesisLog
from zsaq.train.trainer import processes

PACKAGES = ("zsaq", "torch", "transformers", "accelerate")
DIGITS = ("digits-resnet", "digits-vit")
METRICS = {"accuracy": "score", "agreement": "agreement", "kl": "kl"}  # as they are called -> in a row
BUDGET = {
    "images": "synthetic images, where a method makes them beforehand",
    "image_steps": "steps for each batch of images, or of a generator alone",
    "steps": "steps of the student",
    "warmup": "steps that a generator takes alone, before the student's",
    "unit_steps": "steps for each block, where blocks are reconstructed",
    "batch": "images in a step of the student",
    "speed": "times the published learning rate",
}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "--teacher", default=DIGITS[0], help=f"{', '.join(DIGITS)}, or an image classifier: folder or Hub id"
    )
    made.add_argument(
        "--method", default="genie", choices=METHODS, metavar="METHOD", help=f"one of {', '.join(METHODS)}"
    )
    made.add_argument(
        "--preset",
        choices=["uniform", "brecq", "psaq"],
        default="brecq",
        help="what W4A4 means, see zsaq.vision.presets; for ViT, DeiT and Swin psaq or brecq (default: %(default)s)",
    )
    made.add_argument("--bits", default="w2a4", help="w<bits>a<bits>, 2 to 8 (default: %(default)s)")
    for name, text in BUDGET.items():
        default = vars(VisionBudget())[name]
        made.add_argument(f"--{name}", type=type(default), default=default, help=f"{text} (default: %(default)s)")
    made.add_argument("--data_dir", help="labelled images for the scores: class folders, parquet, or Hub id")
    made.add_argument("--split", help="folder or start of file names in --data_dir; on the Hub: validation if absent")
    made.add_argument("--image_column", default="image")
    made.add_argument("--label_column", default="label")
    made.add_argument("--real", help="training images for the oracles, which are not zero-shot; in memory all at once")
    made.add_argument("--size", type=int, help="side in pixels of what the teacher is shown, for want of a processor")
    made.add_argument("--resize", type=int, help="the shorter side before the middle is cut out; default: --size")
    made.add_argument("--mean", type=float, nargs="+", default=MEAN, help="with --size; default: ImageNet's")
    made.add_argument("--std", type=float, nargs="+", default=DEVIATION, help="with --size; default: ImageNet's")
    made.add_argument("--seed", type=int, default=0)
    add_arguments(made)
    made.add_argument("--output_dir", help="default: outputs/<teacher>-<method>-<preset>-<bits>")
    return made


def job_of(args: argparse.Namespace, accelerator: Accelerator) -> VisionJob:
    if args.teacher in DIGITS:
        if args.data_dir or args.real or args.size:
            raise ValueError(f"{args.teacher} brings its own images: leave --data_dir, --real and --size off")
        with accelerator.main_process_first():
            return digits(args.teacher.removeprefix("digits-"))
    columns = args.image_column, args.label_column
    processor = processor_of([args.teacher], args.size, args.resize, args.mean, args.std)
    test = Source(args.data_dir, args.split, columns) if args.data_dir else None
    return pretrained(
        args.teacher, processor, accelerator, test, Source(args.real, None, columns) if args.real else None
    )


def run(job: VisionJob, args: argparse.Namespace, folder: Path, accelerator: Accelerator) -> list[dict[str, Any]]:
    """Students first, then all scores, the table and the output folder; returns the rows."""
    budget = VisionBudget(**{name: vars(args)[name] for name in BUDGET}, pictures=folder / "pictures")
    config = config_of(args.preset, args.bits, job)
    base = base_of(args, None if args.teacher in DIGITS else args.teacher)
    reads = watch(job)
    loop, begin = Loop(accelerator, folder=folder), time.perf_counter()
    job.teacher.to(accelerator.device)
    models, seconds = {"teacher": job.teacher}, {"teacher": 0.0}
    for name in dict.fromkeys(("rtn-noise", args.method)):
        set_seed(args.seed)
        start = time.perf_counter()
        with SynthesisLog(accelerator, loop.every):
            models[name] = METHODS[name](job, config, budget, args.seed, loop)
        seconds[name] = round(time.perf_counter() - start, 2)
    student = cast(PreTrainedModel, models[args.method])
    rows = [
        {"name": name, **job.measure(model), "bytes": size(cast(PreTrainedModel, model)), "seconds": seconds[name]}
        for name, model in models.items()
    ]
    accelerator.end_training()
    if not accelerator.is_main_process:
        return rows
    student.save_pretrained(folder)
    assert job.processor is not None
    job.processor.save_pretrained(folder)
    results = {
        "method": args.method, "zero_shot": not reads, "metrics": METRICS, "data": job.data and vars(job.data),
        "base": base and vars(base), "recipe": recipe(__file__),
        "rows": rows, "job": job.name, "preset": args.preset, "config": plan_of(student).config.to_dict(),
        "seed": args.seed,
        "budget": {name: vars(args)[name] for name in BUDGET}, "arguments": vars(args),
        "seconds": round(time.perf_counter() - begin, 2), "coverage": coverage(student),
        "versions": {p: version(p) for p in PACKAGES} | {"python": platform.python_version()},
        "processes": accelerator.num_processes, "device": str(accelerator.device), "threads": torch.get_num_threads(),
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results, indent=1))
    if list(folder.glob("*.jsonl")):  # a method that takes no step tells none
        draw(folder)
    seal(folder)
    if base is not None:
        print(publish(student, job.processor, folder, base, args.push_to_hub))
    return rows


def table(rows: list[dict[str, Any]], title: str) -> Table:
    made = Table("name", title=title)
    for column in ("score", "agreement", "bytes", "seconds"):
        made.add_column(column, justify="right")
    for row in rows:
        scores = (f"{row[name]:.4f}" if name in row else "-" for name in ("score", "agreement"))
        made.add_row(row["name"], *scores, f"{row['bytes']:,}", f"{row['seconds']:.1f}")
    return made


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    stem = Path(args.teacher).name
    folder = Path(args.output_dir or f"outputs/{stem}-{args.method}-{args.preset}-{args.bits}")
    accelerator = processes()
    job = job_of(args, accelerator)
    rows = run(job, args, folder, accelerator)
    if accelerator.is_main_process:
        Console().print(table(rows, f"{job.name}, {args.preset} {args.bits}"))
        print(f"The model, results.json, pictures and the steps' numbers are in {folder}")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"vision_quantize.py: {error}")
