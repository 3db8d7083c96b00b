"""Seconds of a SAM-SGA step against the counted cost of its passes, and the peak memory.

    python recipes/benchmarks/cost.py --teacher DIR --generator DIR --steps 20

Counted, on the batches that the steps see: one teacher forward and two student forward-and-backward passes a student
step (Zhu et al. leave their cost open; 1.75 times a plain step), and for an ascent step one generator
forward-and-backward, and teacher and student forward-and-backward to the inputs. Passes and steps are timed in turn, in
one process, and the medians compared; whatever is over 1 is quantizers' state, SAM's arithmetic, AdamW, writing text
and the log.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from statistics import median

import torch
from torch import Tensor

from zsaq import Batch, Loop, Pair, QuantConfig, distill
from zsaq.io.readers import tokenizer_of
from zsaq.io.teacher import load_teacher
from zsaq.language.ascent import Ascent
from zsaq.language.sam_sga import divergence, student_of, student_optimizer
from zsaq.language.text_generator import TextGenerator
from zsaq.language.writing import load_generator
from zsaq.script import positive, told


def timed(do: Callable[[], object]) -> float:
    begin = time.perf_counter()
    do()
    return time.perf_counter() - begin


def repeated(batch: Batch, begun: list[float]) -> Iterator[Batch]:
    """The batch over and over, with the time of each request in `begun`: a step lasts from one to the next."""
    while True:
        begun.append(time.perf_counter())
        yield batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--generator", required=True)
    parser.add_argument("--bits", default="w2a8")
    parser.add_argument("--steps", type=positive, default=20)
    args = parser.parse_args()
    teacher, words = load_teacher(args.teacher), tokenizer_of(args.teacher)
    if words is None:
        raise ValueError(f"{args.teacher} has no tokenizer: give a folder or id with one")
    teacher.float().requires_grad_(False)
    generator, tokenizer = load_generator(args.generator)
    text = TextGenerator.of(generator, tokenizer, teacher, words)
    ascent = Ascent(text, teacher, lr=1e-5)
    student = student_of(teacher, QuantConfig.parse(args.bits))
    trained = [p for p in student.parameters() if p.requires_grad]
    objective = divergence(teacher, 1.0)
    soft: list[Batch] = []

    def answer(batch: Batch) -> tuple[Tensor, Tensor]:
        soft.append({k: v.detach() for k, v in batch.items()})
        pair = Pair(teacher, student, batch, objective.captures)
        return objective(pair), pair.teacher.logits

    def to_inputs(batch: Batch) -> None:
        batch = batch | {"inputs_embeds": batch["inputs_embeds"].clone().requires_grad_()}
        torch.autograd.grad(objective(Pair(teacher, student, batch, objective.captures)), batch["inputs_embeds"])

    def speak() -> None:
        written = ascent.soft(generator, text.newest.rows(torch.arange(text.batch_size)))
        torch.autograd.grad(written.log_probs.sum(), ascent.trained, allow_unused=True)

    def both(pair: Pair) -> None:
        student.zero_grad()
        objective(pair).backward()

    seconds: dict[str, list[float]] = {
        "step": [],
        "plain step": [],
        "teacher": [],
        "student": [],
        "ascent": [],
        "counted ascent": [],
    }
    for _ in range(args.steps):
        batch = next(text)
        loop = Loop(schedule="constant", warmup=0.0, every=10**9)
        for name, rho in (("step", 0.16), ("plain step", 0.0)):
            begun: list[float] = []
            distill(student, teacher, repeated(batch, begun), objective, student_optimizer(student, 1e-4, rho), 4, loop)
            seconds[name] += [later - now for now, later in pairwise(begun[1:])]
        pair = Pair(teacher, student, batch, objective.captures)
        seconds["teacher"].append(timed(lambda: pair.teacher))
        seconds["student"].append(timed(lambda: both(pair)))
        for p in trained:
            p.requires_grad_(False)
        seconds["ascent"].append(timed(lambda: ascent.ascend(answer)))
        seconds["counted ascent"].append(timed(lambda: (speak(), to_inputs(soft[-1]))))
        for p in trained:
            p.requires_grad_(True)
    middle = {name: round(median(values), 4) for name, values in seconds.items()}
    metrics = middle | {
        "step / counted": round(middle["step"] / (middle["teacher"] + 2 * middle["student"]), 3),
        "plain step / counted": round(middle["plain step"] / (middle["teacher"] + middle["student"]), 3),
        "ascent / counted": round(middle["ascent"] / middle["counted ascent"], 3),
        "peak GiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(metrics))


if __name__ == "__main__":
    with told():
        main()
