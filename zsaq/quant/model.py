"""From teacher to student, and what was done to each of its modules."""

import dataclasses
from typing import TypeVar

from torch import nn
from transformers import PreTrainedModel

from zsaq.quant.adapter import attach
from zsaq.quant.attention import QuantAttention, Rounded, rounds, swap_rounding
from zsaq.quant.config import QuantConfig
from zsaq.quant.experts import take_apart
from zsaq.quant.finite import check_teacher
from zsaq.quant.grid import describe
from zsaq.quant.layers import QuantActivation, QuantEmbedding, QuantLayer, swap
from zsaq.quant.packed import PackedEmbedding, PackedLayer
from zsaq.quant.plan import Plan, make_plan, plan_of
from zsaq.quant.reach import check_forwards, check_own, check_weights, copied, off_fast_path


def apply_plan(model: nn.Module, plan: Plan) -> None:
    """Swap the chosen layers in place. Ends of a tie share one weight quantizer."""
    off_fast_path(model)
    take_apart(model, plan.chosen)
    modules = dict(model.named_modules())
    for name in sorted(plan.chosen, key=lambda n: n in plan.tied):
        layer, config = modules[name], plan.chosen[name]
        if rounds(layer):
            swap_rounding(layer, config)
            continue
        owner = plan.tied.get(name, name)
        if owner != name:
            config = dataclasses.replace(config, weight=config.embedding, ranges="searched", rules=())
        try:
            swap(layer, config)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        if owner != name:
            layer.weight_quantizer = modules[owner].weight_quantizer
    vars(model)["zsaq_plan"] = plan


Model = TypeVar("Model", bound=nn.Module)


def quantize_model(teacher: Model, config: QuantConfig | str) -> Model:
    """A student: a copy of the teacher in eval mode, seen through integers. The teacher is not touched.

    `config`: or its text, as in "w4a8g128". A transformers student saves itself packed: `student.save_pretrained`.
    Raises ValueError if a rule matches nothing, a grid does not fit its layer, nothing would be quantized, the
    teacher is quantized already, holds numbers that are not finite, or computes where a student cannot follow
    (`zsaq.quant.reach`).
    """
    config = QuantConfig.given(config)
    if is_quantized(teacher):
        raise ValueError("the teacher is quantized already; give the float model")
    check_own(teacher)
    check_weights(teacher, config)
    check_teacher(teacher)
    plan = make_plan(teacher, config)
    student = copied(teacher).eval().requires_grad_(True)
    check_forwards(student, plan)
    apply_plan(student, plan)
    if isinstance(student, PreTrainedModel):
        attach(student)
    return student


def is_quantized(model: nn.Module) -> bool:
    """Whether anything in the model is a student's."""
    return any(isinstance(module, QuantLayer | PackedLayer | QuantActivation) for module in model.modules())


def coverage(student: nn.Module) -> dict[str, str]:
    """For every module that holds weights, of a student or of a loaded model: quantized how, or left alone why.

    Activations and attentions are among them where the configuration speaks of them. Raises ValueError if nothing is
    quantized.
    """
    plan, parts = plan_of(student), {}
    for name, module in student.named_modules():
        if isinstance(module, QuantLayer | PackedLayer):
            grid = module.grid if isinstance(module, PackedLayer) else module.weight_quantizer.grid
            inputs = f", inputs {describe(module.input_quantizer and module.input_quantizer.grid)}"
            table = isinstance(module, QuantEmbedding | PackedEmbedding)
            parts[name] = f"weights {describe(grid)}{'' if table else inputs}"
        elif isinstance(module, QuantAttention):
            parts[name] = f"products of {describe(module.grid)}"
        elif isinstance(module, QuantActivation) and not isinstance(module, Rounded):
            parts[name] = f"outputs {describe(module.output_quantizer.grid)}"
        elif name in plan.left:
            parts[name] = f"left alone: {plan.left[name]}"
    if not parts.keys() - plan.left.keys():
        raise ValueError("nothing is quantized in this model")
    return parts
