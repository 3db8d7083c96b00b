"""Peak memory of training steps, each in a process of its own, as multiples of the teacher's file.

    python -m recipes.benchmarks.training_memory --teacher DIR --rows 2 --tokens 128

Resident memory at its highest, less what it was after the imports; random tokens stand for text, since no tensor's size
depends on them. `ascent`: the generator is the teacher, and climbs.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from recipes.benchmarks.resident import resident
from zsaq import Loop
from zsaq.io.readers import tokenizer_of
from zsaq.io.teacher import load_teacher
from zsaq.language.job import TextJob
from zsaq.language.models import token_table
from zsaq.language.sam_sga import pull, student_of
from zsaq.quant.config import QuantConfig
from zsaq.script import positive, told
from zsaq.train.pair import Batch
from zsaq.train.widening import keep_narrow, widened

STAGES = ("teacher", "student", "plain", "sam", "ascent", "ascent, lora")


def peak() -> float:
    """MB (10^6 bytes)."""
    return resident() * 2**20 / 1e6


def run(stage: str, args: argparse.Namespace) -> dict[str, float]:
    """What the stage took at most above the imports, and its seconds."""
    imported, began = peak(), time.perf_counter()
    loop = Loop(schedule="constant", warmup=0.0, every=10**9, recompute=args.recompute, eight_bit=args.eight_bit)
    teacher = load_teacher(args.teacher).requires_grad_(False)
    keep_narrow(teacher)
    words = token_table(teacher).num_embeddings
    ids = torch.randint(5, words, (args.rows, args.tokens), generator=torch.Generator().manual_seed(0))
    batch: Batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if stage == "teacher":
        with torch.no_grad(), widened(teacher):
            teacher(**batch)
    elif stage == "student":
        student_of(teacher, QuantConfig.parse(args.bits))
    elif stage in ("plain", "sam"):
        student = student_of(teacher, QuantConfig.parse(args.bits))
        pull(student, teacher, [batch] * 2, steps=2, lr=0.0032, rho=0.16 if stage == "sam" else 0.0, loop=loop)
    else:
        job = TextJob.of(teacher, tokenizer_of(args.teacher), max_length=args.tokens)
        job.batch_size, job.style = args.rows, {"refresh": 1}
        student = student_of(teacher, QuantConfig.parse(args.bits))
        ascent = job.ascent(0, lora="lora" in stage)
        pull(student, teacher, ascent.text, steps=2, lr=0.0032, adversary=ascent, ratio=(1, 1), loop=loop)
    return {"mb": round(peak() - imported), "seconds": round(time.perf_counter() - began, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--bits", default="w4a8")
    parser.add_argument("--rows", type=positive, default=2)
    parser.add_argument("--tokens", type=positive, default=128)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--eight_bit", action="store_true")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        print(json.dumps(run(args.stages[0], args)))
        return
    size = sum(path.stat().st_size for path in Path(args.teacher).glob("*.safetensors")) / 1e6
    for stage in args.stages:
        words = [
            sys.executable,
            "-m",
            "recipes.benchmarks.training_memory",
            *sys.argv[1:],
            "--alone",
            "--stages",
            stage,
        ]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(f"{stage} ended with {done.returncode}: {done.stderr[-400:]}")
        measured = json.loads(done.stdout.splitlines()[-1])
        print(json.dumps({"stage": stage, **measured, "of the file": round(measured["mb"] / size, 2)}), flush=True)


if __name__ == "__main__":
    with told():
        main()
