"""ZSAQ (Zhu et al. 2023, arXiv 2310.13315): a generator climbs where the quantized student disagrees with its teacher,
the student descends by sharpness-aware minimization.

min over w, max over theta of S(q(w), theta), where S is the divergence at the worst point within rho of the quantized
weights. The paper's text leaves step ratio, learning rates, rho and divergence open; the values here were chosen on one
declared case (a MiniLM on SST-2 at W2A8, by its divergence from the teacher on that task's sentences) and are the same
for all. One decision saw more: that rates count in grid steps was taken on real scores of that model at W4A8 and W8A8
and of a small Llama, which are therefore no clean zero-shot results. recipes/LOG.md has the comparison.
"""

import dataclasses
import math
from collections.abc import Iterable
from itertools import islice

import torch
from transformers import PreTrainedModel

from zsaq.language.models import block_list, blocks, task_kind, token_table
from zsaq.quant.config import QuantConfig
from zsaq.quant.layers import QuantEmbedding, parameter_groups, quant_layers
from zsaq.quant.model import quantize_model
from zsaq.quant.ranges import static_ranges
from zsaq.quant.sharded import gathered
from zsaq.sentence import pooling_of
from zsaq.train.embeddings import Embeddings, Similarities
from zsaq.train.gptq import compensate
from zsaq.train.loop import Loop
from zsaq.train.objectives import KL, HiddenStates, LayerWise, RelativeMSE, Sum
from zsaq.train.optim import Clip, Wrapper, adamw
from zsaq.train.pair import Batch
from zsaq.train.sam import SAM
from zsaq.train.stages import stage
from zsaq.train.streams import stream_of
from zsaq.train.trainer import Adversary, calibrate, distill

CALIBRATION = 16  # batches that fill static ranges of inputs


def with_learned_ranges(config: QuantConfig) -> QuantConfig:
    """`config` with searched ranges of fewer than 8 bits learned from where the search ends, its rules' too."""
    rules = tuple((glob, own and with_learned_ranges(own)) for glob, own in config.rules)
    low = config.weight is not None and config.weight.bits < 8 and config.ranges == "searched"
    return dataclasses.replace(config, rules=rules, ranges="learned" if low else config.ranges)


def student_of(
    teacher: PreTrainedModel, config: QuantConfig, batches: Iterable[Batch] = (), loop: Loop | None = None
) -> PreTrainedModel:
    """A student to train, in float32: ranges `with_learned_ranges`; the token table is rounded once and kept.

    Static ranges of inputs, if the config has any, are those of the first `CALIBRATION` of `batches`.
    """
    student = quantize_model(teacher, with_learned_ranges(config)).float()
    token_table(student).weight.requires_grad_(False)
    return calibrated(student, batches, loop)


def calibrated(student: PreTrainedModel, batches: Iterable[Batch], loop: Loop | None = None) -> PreTrainedModel:
    """The student, its static ranges of inputs, if it has any, those of the first `CALIBRATION` of `batches`."""
    if not static_ranges(student):
        return calibrate(student, (), loop and loop.accelerator)
    stream = stream_of(batches)
    with stage("calibrate", student=student, stream=stream) as at:
        if at.todo:
            calibrate(student, islice(stream, CALIBRATION), loop and loop.accelerator)
    return student


def divergence(teacher: PreTrainedModel, hidden: float) -> Sum:
    """KL of the answers (for regression `RelativeMSE`; for embeddings, pooled as the teacher's own files say, the error
    of vectors and of similarities) plus `hidden` times the error of the hidden states."""
    kind = task_kind(teacher)
    states = hidden * HiddenStates(type(block_list(teacher)[0]))
    if kind == "embedding":
        pooling = pooling_of(teacher.name_or_path)
        return Embeddings(pooling) + Similarities(pooling) + states
    return (RelativeMSE() if kind == "regression" else KL()) + states


def grid_step(student: PreTrainedModel) -> float:
    """Mean distance between neighbouring levels of the quantized weights, in units of the weights.

    Raises ValueError if only a token table is quantized, and for weights that are not finite.
    """
    steps = {}
    for name, layer in quant_layers(student):
        if not isinstance(layer, QuantEmbedding):
            with gathered(layer):
                scale = layer.weight_quantizer.codes(layer.rows().flatten(1))[1]
            steps[name] = scale.abs().mean() * layer.weight_quantizer.grid.step
    if not steps:
        raise ValueError("no weight is quantized but the token table's, which is not trained; give the config weights")
    mean = float(torch.stack([*steps.values()]).mean())
    if not math.isfinite(mean):
        broken = [name for name, step in steps.items() if not step.isfinite()]
        raise ValueError(f"the weights of {', '.join(broken[:4])} are not finite: give a model that works")
    return mean


def student_optimizer(
    student: PreTrainedModel,
    lr: float,
    rho: float = 0.0,
    *,
    steps: int = 1,
    sam_share: float = 1.0,
    eight_bit: bool = False,
) -> Wrapper:
    """AdamW without decay on the clipped gradient; SAM around it where rho is positive, in the last `sam_share` of the
    `steps`.

    `lr` and `rho` count in grid steps: Adam moves every weight by about `lr` of the mean distance between two levels at
    a time, whatever the bits and the size of the weights. With one absolute rate for all, 30 training steps cost 8-bit
    students what rounding had kept. See `grid_step` and `adamw` for what is raised.
    """
    unit = grid_step(student)
    adam = Clip(adamw(parameter_groups(student, lr * unit), lr * unit, eight_bit), 1.0)
    looks = round(sam_share * steps)
    return SAM(adam, student, rho * unit, after=steps - looks) if rho and looks else adam


def warm_start(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    batches: Iterable[Batch],
    steps: int,
    lr: float = 0.0032,
    loop: Loop | None = None,
) -> PreTrainedModel:
    """ZeroQuant's layer-wise distillation: only the blocks move, each alone."""
    if steps:
        inside = {id(p) for block in block_list(student) for p in block.parameters()}
        frozen = [p for p in student.parameters() if p.requires_grad and id(p) not in inside]
        for p in frozen:
            p.requires_grad_(False)
        objective = LayerWise(type(block_list(teacher)[0]))
        optimizer = student_optimizer(student, lr, eight_bit=loop is not None and loop.eight_bit)
        distill(student, teacher, batches, objective, optimizer, steps, loop, stage="warm-start")
        for p in frozen:
            p.requires_grad_(True)
    return student


def gptq_student(
    teacher: PreTrainedModel, config: QuantConfig, batches: Iterable[Batch], loop: Loop | None = None
) -> PreTrainedModel:
    """A student to train whose weights GPTQ rounded on `batches`, block by block (`zsaq.compensate`).

    Static ranges of inputs are those of the first `CALIBRATION` of the same batches.
    """
    batches = list(batches)
    student = student_of(teacher, config, batches, loop)
    return compensate(student, batches, blocks(student), loop=loop)


def pull(
    student: PreTrainedModel, teacher: PreTrainedModel, batches: Iterable[Batch], *, steps: int, lr: float,
    hidden: float = 1.0, rho: float = 0.0, sam_share: float = 1.0, adversary: Adversary | None = None,
    ratio: tuple[int, int] = (5, 1), loop: Loop | None = None,
) -> PreTrainedModel:  # fmt: skip
    """End-to-end distillation on any batches: random tokens, sampled text (LLM-QAT), real ones, or ZSAQ's."""
    eight_bit = loop is not None and loop.eight_bit
    optimizer = student_optimizer(student, lr, rho, steps=steps, sam_share=sam_share, eight_bit=eight_bit)
    return distill(
        student, teacher, batches, divergence(teacher, hidden), optimizer, steps, loop, adversary=adversary, ratio=ratio
    )


def sam_sga(
    teacher: PreTrainedModel, config: QuantConfig, text: Iterable[Batch], ascent: Adversary | None = None, *,
    steps: int = 200, warm: int = 40, lr: float = 0.0032, hidden: float = 1.0, rho: float = 0.16,
    sam_share: float = 1.0, ratio: tuple[int, int] = (5, 1), loop: Loop | None = None,
    start: PreTrainedModel | None = None,
) -> PreTrainedModel:  # fmt: skip
    """Warm start, then SAM-SGA: `steps` student steps in all, the first `warm` of them layer by layer.

    `text` is the endless stream of batches, and `ascent`, which changes what it will give, climbs ratio[1] times after
    every ratio[0] student steps; None keeps the generator as it is. rho 0 takes plain steps; `lr` and `rho` count in
    grid steps (see `student_optimizer`). A teacher that is loaded in 8 or 4 bits (bitsandbytes) answers, but cannot be
    copied: then `start` is the float model that becomes the student. Returns the student; its latent weights, scales,
    norms and biases are trained, the token table is not. Raises ValueError as `distill` does, and for a `warm` that
    leaves no step.
    """
    if not 0 <= warm < steps:
        raise ValueError(f"warm is {warm} of {steps} steps; give 0 or more, and fewer than steps")
    if not 0 <= sam_share <= 1:
        raise ValueError(f"sam_share is {sam_share}; give a share of the steps, from 0 to 1")
    stream = stream_of(text)
    student = warm_start(student_of(start or teacher, config, stream, loop), teacher, stream, warm, lr, loop)
    return pull(
        student, teacher, stream, steps=steps - warm, lr=lr, hidden=hidden, rho=rho, sam_share=sam_share,
        adversary=ascent, ratio=ratio, loop=loop,
    )  # fmt: skip
