"""The rows of the tables: every method on the same job, with the same budget of student steps."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from job import Job
from transformers import PreTrainedModel

from zsaq import Batch, Loop, QuantConfig, quantize_model
from zsaq.language.sam_sga import GPTQ_BATCHES, SLOW, gptq_student, pull, student_of, warm_start, zsaq
from zsaq.quant.config import Ranges


@dataclass(frozen=True)
class Budget:
    """`steps` student steps in all, the first `warm` of them layer by layer where a method warm-starts."""

    steps: int = 200
    warm: int = 40
    lr: float = 0.0032
    hidden: float = 1.0
    rho: float = 0.16
    ratio: tuple[int, int] = (5, 1)
    generator_lr: float = 1e-4


Method = Callable[[Job, QuantConfig, Budget, int, Loop], PreTrainedModel]


def rtn(ranges: Ranges) -> Method:
    """Round-to-nearest; no step is taken."""
    return lambda job, config, budget, seed, loop: quantize_model(job.start, dataclasses.replace(config, ranges=ranges))


def distilled(source: Callable[[Job, int], Iterator[Batch]], warm: bool = False) -> Method:
    """End-to-end distillation on a source, with plain steps; `warm`: after ZSAQ's warm start on it."""

    def run(job: Job, config: QuantConfig, budget: Budget, seed: int, loop: Loop) -> PreTrainedModel:
        stream, first = source(job, seed), budget.warm if warm else 0
        student = student_of(job.start, config, stream, loop)
        warm_start(student, job.teacher, stream, first, budget.lr, loop)
        return pull(
            student, job.teacher, stream, steps=budget.steps - first, lr=budget.lr, hidden=budget.hidden, loop=loop
        )

    return run


def lkd(source: Callable[[Job, int], Iterator[Batch]]) -> Method:
    """ZeroQuant's layer-wise distillation alone, for the whole budget."""

    def run(job: Job, config: QuantConfig, budget: Budget, seed: int, loop: Loop) -> PreTrainedModel:
        stream = source(job, seed)
        student = student_of(job.start, config, stream, loop)
        return warm_start(student, job.teacher, stream, budget.steps, budget.lr, loop)

    return run


def gptq(source: Callable[[Job, int], Iterator[Batch]]) -> Method:
    """Compensated rounding, with a batch for every four steps of the budget; no step is taken."""

    def run(job: Job, config: QuantConfig, budget: Budget, seed: int, loop: Loop) -> PreTrainedModel:
        return gptq_student(job.start, config, islice(source(job, seed), max(1, budget.steps // 4)), loop)

    return run


def gptq_qat(source: Callable[[Job, int], Iterator[Batch]]) -> Method:
    """Plain steps from compensated rounding, at a rate that does not undo it. A batch counts as two steps."""

    def run(job: Job, config: QuantConfig, budget: Budget, seed: int, loop: Loop) -> PreTrainedModel:
        if (steps := budget.steps - 2 * GPTQ_BATCHES) < 1:
            raise ValueError(f"compensation counts as {2 * GPTQ_BATCHES} of {budget.steps} steps; give more steps")
        stream = source(job, seed)
        student = gptq_student(job.start, config, islice(stream, GPTQ_BATCHES), loop)
        return pull(student, job.teacher, stream, steps=steps, lr=SLOW, hidden=budget.hidden, loop=loop)

    return run


def full(sam: bool = True, sga: bool = True) -> Method:
    def run(job: Job, config: QuantConfig, budget: Budget, seed: int, loop: Loop) -> PreTrainedModel:
        text_generator = job.text_generator(seed, lr=budget.generator_lr)
        options = {"steps": budget.steps, "warm": budget.warm, "lr": budget.lr, "hidden": budget.hidden, "loop": loop}
        ratio = budget.ratio if sga else (budget.ratio[0], 0)
        return zsaq(
            job.teacher, config, text_generator, rho=budget.rho if sam else 0.0, ratio=ratio, start=job.start, **options
        )

    return run


METHODS: dict[str, Method] = {
    "rtn-minmax": rtn("minmax"),
    "rtn-searched": rtn("searched"),
    "random-qat": distilled(Job.noise),
    "gptq-random": gptq(Job.noise),
    "gptq-text": gptq(Job.text_generator),
    "gptq-oracle": gptq(Job.oracle),  # real unlabelled text: not zero-shot
    "gptq-qat": gptq_qat(Job.text_generator),
    "gptq-qat-oracle": gptq_qat(Job.oracle),  # real unlabelled text: not zero-shot
    "lkd-random": lkd(Job.noise),
    "lkd-text": lkd(Job.text_generator),
    "llm-qat": distilled(Job.text_generator),  # text sampled from the generator: the teacher itself where it is causal
    "zsaq-plain": full(sam=False, sga=False),
    "zsaq-no-sam": full(sam=False),
    "zsaq-no-sga": full(sga=False),
    "zsaq": full(),
    "oracle": distilled(Job.oracle, warm=True),  # real unlabelled text: not zero-shot
}
