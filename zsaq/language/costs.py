"""What a run will cost, from a first measurement: told before anything is spent, as estimates."""

import time
from dataclasses import dataclass
from typing import Final, final

import torch

from zsaq.language.job import TextJob
from zsaq.language.models import block_list
from zsaq.language.text import filler
from zsaq.method import Budget
from zsaq.quant.kinds import kind_of
from zsaq.quant.layers import weight_rows
from zsaq.train.logging import duration
from zsaq.train.loop import Loop
from zsaq.train.widening import widened

FIRST: Final = 64  # tokens of the measurement
# How many times a pass over the same tokens it takes: guesses, from parts of runs of SmolLM2-135M on one core.
WRITING, COMPENSATING, TRAINING = 1.5, 5.0, 5.0
SOLVING: Final = 10  # operations for each d^2 (d + outputs) of a layer with d inputs
WRITTEN: Final = 160  # rows that are written at once


@final
@dataclass(frozen=True)
class Cost:
    """`seconds`, and the most `bytes` at a time beside what is there before anything is made."""

    seconds: float
    bytes: float

    def __str__(self) -> str:
        return f"about {duration(self.seconds)} and {self.bytes / 1e9:.1f} GB of memory (estimates)"

    @classmethod
    def of(cls, job: TextJob, budget: Budget, loop: Loop) -> "Cost | None":
        """Of a method that writes, GPTQ-rounds or trains with a causal teacher, by its counts and the `loop` in which
        it runs; None for others, without a tokenizer, and where the model cannot be asked for a measurement."""
        numbers = {name: budget.numbers.get(name) for name in ("calibration", "steps")}
        counts = {name: number if type(number) is int else 0 for name, number in numbers.items()}
        if job.kind != "causal" or job.tokenizer is None or not any(counts.values()):
            return None
        try:
            return cls._of(job, counts, budget, loop)
        except (ValueError, AttributeError, TypeError, LookupError, RuntimeError):  # what is only told stops no run
            return None

    @classmethod
    def _of(cls, job: TextJob, counts: dict[str, int], budget: Budget, loop: Loop) -> "Cost":
        model, row = job.start, job.batch_size * job.max_length
        pace, size = seconds_a_token(job), 4 * sum(p.numel() for p in model.parameters())
        part = 1 / loop.accelerator.num_processes if loop.shared else 1  # of a batch that a process trains on
        step = (TRAINING + loop.recompute) * looks(budget) * part
        passes = {"calibration": row * (WRITING + COMPENSATING), "steps": loop.accumulate * row * (WRITING + step)}
        if "batch_size" in budget.numbers:  # steps of each block, on rows that are there
            passes["steps"] = budget["batch_size"] * job.max_length * TRAINING
        seconds = sum(passes[name] * count * pace for name, count in counts.items())
        config = model.config.get_text_config().to_dict()
        width = config.get("hidden_size") or config.get("n_embd") or 0
        vocabulary, layers = config.get("vocab_size") or 0, len(block_list(model))
        heads = config.get("num_attention_heads") or 1
        keys = (config.get("num_key_value_heads") or heads) * (config.get("head_dim") or width // heads)
        peak = 4 * WRITTEN * (2 * layers * keys * job.max_length + 3 * vocabulary)
        if counts["calibration"]:
            seconds += SOLVING * solving(job) / (size / 2 / pace)  # 2 operations a parameter in a pass
            peak = max(peak, size + 8 * counts["calibration"] * row * width)
        if "batch_size" in budget.numbers:
            part = budget["batch_size"] / job.batch_size
            peak = max(peak, size + 4 * counts["calibration"] * row * 3 * width + 64 * row * part * width)
        elif counts["steps"]:
            states = (4 - 1.5 * loop.eight_bit) * size  # weights, gradients, and two numbers of AdamW's for each
            kept = (layers + 16) if loop.recompute else 16 * layers
            peak = max(peak, states + 4 * row * part * (kept * width + 5 * vocabulary))
        return cls(seconds, size + peak)


def looks(budget: Budget) -> float:
    """Times that a step computes gradients, on the whole: SAM looks twice."""
    return 1.0 + bool(budget.numbers.get("rho")) * budget.numbers.get("sam_share", 1.0)


@torch.no_grad()
def seconds_a_token(job: TextJob) -> float:
    """Of a pass of the teacher, after a first one that nobody counts."""
    count = min(FIRST, job.max_length)
    ids = torch.full((1, count), filler(job.words), device=job.start.device)
    with widened(job.start):
        job.start(input_ids=ids[:, :1])
        began = time.perf_counter()
        job.start(input_ids=ids)
        if job.start.device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / count


def solving(job: TextJob) -> float:
    """What GPTQ's equations of all layers count, d^2 (d + outputs)."""
    total = 0
    for block in block_list(job.start):
        for layer in block.modules():
            if kind_of(layer) is not None:
                rows = weight_rows(layer).shape
                total += rows[1] ** 2 * (rows[0] + rows[1])
    return float(total)
