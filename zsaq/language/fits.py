"""How a student is fitted: what a row of `zsaq.language.methods` does with its source of batches and its budget."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from torch import Tensor, nn
from transformers import PreTrainedModel

from zsaq.language.job import TextJob
from zsaq.language.models import blocks
from zsaq.language.sam_sga import calibrated, gptq_student, pull, sam_sga, student_of, warm_start
from zsaq.method import Budget
from zsaq.quant.config import QuantConfig
from zsaq.quant.model import quantize_model
from zsaq.train.calls import Args, even
from zsaq.train.gptq import layers_of, round_block
from zsaq.train.loop import Loop
from zsaq.train.pair import Batch
from zsaq.train.straight import Recipe, learn_blocks
from zsaq.train.streams import drawn, stream_of
from zsaq.train.widening import is_narrow, keep_narrow, released, widened

Fit = Callable[[TextJob, QuantConfig, Budget, int, Loop], PreTrainedModel]
BatchSource = Callable[[TextJob, int], Iterator[Batch]]
DAMPING: Final = 0.01  # GPTQ's


def with_rules(config: QuantConfig) -> list[QuantConfig]:
    """The configuration and those of its rules."""
    return [part for part in (config, *(rule for _, rule in config.rules)) if part is not None]


def rounded(job: TextJob, config: QuantConfig, budget: Budget, seed: int, loop: Loop) -> PreTrainedModel:
    """Round-to-nearest in the configuration's own ranges; no step is taken, and nothing read but, where inputs have
    static ranges, random tokens."""
    student = quantize_model(job.start, config)
    student = student.float() if is_narrow(job.start) else student
    if config.static:
        keep_narrow(student)  # so that ranges are seen in float32, whatever the student computes in
        with released(student), widened(student):
            calibrated(student, job.noise(seed), loop)
    return student


def rounded_minmax(job: TextJob, config: QuantConfig, budget: Budget, seed: int, loop: Loop) -> PreTrainedModel:
    return rounded(job, dataclasses.replace(config, ranges="minmax"), budget, seed, loop)


def warm_steps(budget: Budget) -> int:
    """Steps layer by layer: a fifth of all, where the budget does not say."""
    return budget["steps"] // 5 if budget["warm"] is None else budget["warm"]


def distilled(source: BatchSource, warm: bool = False) -> Fit:
    """End-to-end distillation with plain steps; `warm`: after ZSAQ's warm start on the same source."""

    def fit(job: TextJob, config: QuantConfig, budget: Budget, seed: int, loop: Loop) -> PreTrainedModel:
        steps, lr, hidden = budget["steps"], budget["lr"], budget["hidden"]
        first = warm_steps(budget) if warm else 0
        return sam_sga(
            job.teacher, config, source(job, seed), steps=steps, warm=first, lr=lr, hidden=hidden, rho=0.0, loop=loop,
            start=job.start,
        )  # fmt: skip

    return fit


def layer_wise(source: BatchSource) -> Fit:
    """ZeroQuant's layer-wise distillation alone."""

    def fit(job: TextJob, config: QuantConfig, budget: Budget, seed: int, loop: Loop) -> PreTrainedModel:
        batches = stream_of(source(job, seed))
        student = student_of(job.start, config, batches, loop)
        return warm_start(student, job.teacher, batches, budget["steps"], budget["lr"], loop)

    return fit


def gptq_rounded(source: BatchSource) -> Fit:
    """GPTQ's rounding; no step is taken."""

    def fit(job: TextJob, config: QuantConfig, budget: Budget, seed: int, loop: Loop) -> PreTrainedModel:
        return gptq_student(job.start, config, drawn(stream_of(source(job, seed)), budget["calibration"]), loop)

    return fit


def reconstructed(source: BatchSource) -> Fit:
    """Block by block GPTQ's rounding, from which its latent weights and scales learn (`zsaq.train.straight`)."""

    def fit(job: TextJob, config: QuantConfig, budget: Budget, seed: int, loop: Loop) -> PreTrainedModel:
        job.shared = True  # each process learns all by itself
        batches = even(drawn(stream_of(source(job, seed)), budget["calibration"]))
        student = student_of(job.start, config, batches, loop)
        layers = {name: layers_of(student, name) for name, _ in blocks(student)}

        def first(block: nn.Module, name: str, calls: Sequence[Args], masks: Sequence[Tensor | None]) -> None:
            round_block(block, name, layers[name], calls, masks, DAMPING, loop)

        with widened(job.teacher):
            return learn_blocks(
                student, job.teacher, batches, blocks(student), recipe_of(budget), first=first, seed=seed, loop=loop
            )

    return fit


def recipe_of(budget: Budget) -> Recipe:
    """How a block learns."""
    return Recipe(budget["steps"], budget["batch_size"], budget["lr"])


def gptq_qat(source: BatchSource) -> Fit:
    """Plain steps from GPTQ's rounding."""

    def fit(job: TextJob, config: QuantConfig, budget: Budget, seed: int, loop: Loop) -> PreTrainedModel:
        batches = stream_of(source(job, seed))
        student = gptq_student(job.start, config, drawn(batches, budget["calibration"]), loop)
        steps, lr, hidden = budget["steps"], budget["lr"], budget["hidden"]
        return pull(student, job.teacher, batches, steps=steps, lr=lr, hidden=hidden, loop=loop)

    return fit


def minimax(job: TextJob, config: QuantConfig, budget: Budget, seed: int, loop: Loop) -> PreTrainedModel:
    """ZSAQ with those parts that the row's budget names. Where nothing climbs there is nothing that could."""
    numbers, ascent = budget.numbers, None
    ratio = numbers.get("ratio", (1, 0))
    if ratio[1]:
        options = {name: budget[name] for name in ("fluency", "diversity", "bridge", "eight_bit", "lora")}
        ascent = job.ascent(seed, lr=budget["generator_lr"], **options)
    sam = {"rho": numbers.get("rho", 0.0), "sam_share": numbers.get("sam_share", 1.0)}
    return sam_sga(
        job.teacher, config, job.text(seed) if ascent is None else ascent.text, ascent, steps=budget["steps"],
        warm=warm_steps(budget), lr=budget["lr"], hidden=budget["hidden"], ratio=ratio, loop=loop, start=job.start,
        **sam,
    )  # fmt: skip
