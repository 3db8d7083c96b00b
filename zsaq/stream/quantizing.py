"""A student made from the disk to the disk: one block after the other is read, rounded or compensated, and written.

The codes are those that the same method gives in memory, to the bit: blocks are rounded in the same order on the same
inputs, each of which the block before has answered.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from zsaq.language.sam_sga import with_learned_ranges
from zsaq.quant.adapter import ZsaqConfig, packed_tensors
from zsaq.quant.config import QuantConfig
from zsaq.quant.guard import NOTE, decoys
from zsaq.quant.layers import QuantLayer, quant_layers, swap
from zsaq.quant.plan import Plan, make_plan
from zsaq.stream.passing import Packed, ended, ends, packed_matrix, read_on_call
from zsaq.stream.shards import Shards
from zsaq.stream.skeleton import IN_MEMORY, Skeleton
from zsaq.train.chain import Chain
from zsaq.train.gptq import round_block
from zsaq.train.logging import StepLog
from zsaq.train.pair import Batch
from zsaq.train.trainer import Loop

Rounding = Literal["rtn", "gptq"]
DAMPING: Final = 0.01


@final
@dataclass(frozen=True)
class Nearness:
    """How near a student is to its teacher on `tokens` of text: mean KL(teacher || student) in nats a token, and the
    share of tokens of which both say the same."""

    kl: float
    agreement: float
    tokens: int

    @classmethod
    def of(cls, teacher: Tensor, student: Tensor) -> "Nearness":
        """Of logits [..., V]."""
        t, s = (each.flatten(0, -2).float().log_softmax(-1) for each in (teacher, student))
        kl = (t.exp() * (t - s)).sum(-1).mean()
        return cls(float(kl), float((t.argmax(-1) == s.argmax(-1)).float().mean()), len(t))


@torch.no_grad()
def quantize_files(
    source: Path, target: Path, config: QuantConfig, *, rounding: Rounding = "gptq", batches: Sequence[Batch] = (),
    held: Tensor | None = None, loop: Loop | None = None,
) -> tuple[PreTrainedModel, Plan, Nearness | None]:  # fmt: skip
    """The student of the float model in the folder `source`, written to the empty folder `target`.

    `rounding`: to nearest, or GPTQ's on `batches`. `held`: ids [N, L] of text that teacher and student are compared on
    when all is written. The device of `loop` holds one block. Answers the model without weights, what was decided about
    its modules, and how near the student is. Raises ValueError as `Skeleton.of`, `make_plan` and `zsaq.gptq` do, for
    static ranges, and for blocks that are no chain.
    """
    loop = loop or Loop()
    if config.static:
        raise ValueError(f"static ranges of inputs are those of a whole pass: {IN_MEMORY}")
    if rounding == "gptq" and not batches:
        raise ValueError("GPTQ rounds on batches, and there are none: give text, or take rtn")
    skeleton = Skeleton.of(source)
    model, plan = skeleton.model, make_plan(skeleton.model, learned(config) if rounding == "gptq" else config)
    dtype = torch.float32 if rounding == "gptq" else None  # what is not quantized, as it is saved
    shards = Shards(target, len(skeleton.blocks) + 1)
    outer, codes = outside(skeleton, plan, dtype)
    shards.add(outer)
    del outer
    table, head = plan.chosen.get(skeleton.table), plan.chosen.get(skeleton.head)
    calibrating = answers = teacher = None
    with ends(skeleton), read_on_call(skeleton):
        if held is not None:
            teacher = model(input_ids=held, use_cache=False).logits
        if batches or held is not None:
            probe = batches or [{"input_ids": held}]
            forms = Chain(model, skeleton.blocks, [{k: v[:1] for k, v in probe[0].items()}]).forms
            if forms is None:
                raise ValueError(f"the blocks of {type(model).__name__} do not follow each other alone: {IN_MEMORY}")
    device = loop.accelerator.device
    with ends(skeleton, table, head, codes):
        if batches:
            calibrating = Chain(model, skeleton.blocks, batches, forms=forms, device=device)
        if held is not None:
            answers = Chain(model, skeleton.blocks, [{"input_ids": held}], forms=forms, device=device, last=True)
        with StepLog(loop.accelerator, rounding, len(skeleton.blocks), loop.folder, every=1) as log:
            for number, name in enumerate(skeleton.blocks):
                block = skeleton.fill(name, torch.float32).to(device)
                layers = swapped(block, name, plan)
                errors: list[float] = []
                if calibrating is not None:
                    masks = [batch.get("attention_mask") for batch in batches]
                    errors = round_block(block, name, layers, calibrating.calls(number), masks, DAMPING, loop)
                    calibrating.answered(number)
                if answers is not None:
                    answers.answered(number)
                shards.add(written(skeleton, block, name, dtype))
                skeleton.empty(name)
                log.write(number + 1, {"error": sum(errors) / len(errors)} if errors else {})
        shards.finish()
        near = None
        if answers is not None and teacher is not None and held is not None:
            blocks = [model.get_submodule(name) for name in skeleton.blocks]
            near = Nearness.of(teacher, ended(skeleton, blocks, answers.answers[0], held, answers.forms or []))
    model.config.quantization_config = ZsaqConfig(plan)
    return model, plan, near


def learned(config: QuantConfig) -> QuantConfig:
    return with_learned_ranges(config)


def swapped(block: nn.Module, name: str, plan: Plan) -> dict[str, QuantLayer]:
    """The chosen layers of a block, made quantized ones in place, by their names in it."""
    for path, module in list(block.named_modules(prefix=name)):
        if path in plan.chosen:
            try:
                swap(module, plan.chosen[path])
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
    return dict(quant_layers(block))


def written(skeleton: Skeleton, block: nn.Module, name: str, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """What is saved of a block: packed layers with their decoys, and the rest in `dtype`, by default as it was read."""
    packed = packed_tensors(block, f"{name}.")
    layers = [f"{name}.{each}" for each, _ in quant_layers(block)]
    read = {
        key: value if dtype or key not in skeleton.weights.header else skeleton.weights.tensor(key)
        for key, value in packed.items()
    }
    marks = decoys(layers)
    del marks[NOTE]  # which stands in the first file
    return marks | read


def outside(skeleton: Skeleton, plan: Plan, dtype: torch.dtype | None) -> tuple[dict[str, Tensor], Packed | None]:
    """What is saved of all but the blocks, and what the head's rows are read from: its codes, or those of the table
    that it is tied to."""
    state: dict[str, Tensor] = {}
    layers, codes = [], None
    for name in (skeleton.table, skeleton.head):
        source = skeleton.source(f"{name}.weight")
        if name in plan.tied or (name == skeleton.head and skeleton.tied):
            continue
        config, table = plan.chosen.get(name), name == skeleton.table
        if config is None:
            state[source] = skeleton.weights.tensor(source, dtype)
            continue
        grid = config.embedding if table else config.weight
        assert grid is not None
        packed = packed_matrix(skeleton, source, grid, "searched" if table else config.ranges)
        codes = packed if skeleton.tied or not table else codes
        state |= {f"{name}.{key}": value for key, value in packed.items()}
        layers.append(name)
    head = skeleton.model.get_submodule(skeleton.head)
    if head.bias is not None:
        state[f"{skeleton.head}.bias"] = skeleton.weights.tensor(f"{skeleton.head}.bias", dtype)
    for name, _ in skeleton.outside():
        module = skeleton.fill(name, dtype)
        state |= {f"{name}.{key}": value for key, value in module.state_dict().items() if "." not in key}
        skeleton.empty(name)
    return decoys(layers) | state, codes
