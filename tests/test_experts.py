"""Fused experts are quantized row by row, trained, packed, saved and loaded like any layer."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T
from torch import Tensor, nn

import zsaq
from test_heads import BERT, ENDS
from toys import spread
from zsaq import Grid, QuantConfig, ZsaqConfig, coverage, parameter_groups, quantize_model
from zsaq.quant.experts import fused_weights
from zsaq.quant.layers import QuantExpertLinear, quant_layers
from zsaq.quant.packed import PackedExpertLinear
from zsaq.quant.plan import make_plan, plan_of
from zsaq.quant.share import Share
from zsaq.train.gptq import compensate
from zsaq.train.inundation import weight_codes
from zsaq.train.objectives import KL
from zsaq.train.sam import SAM
from zsaq.train.streams import repeat
from zsaq.train.trainer import calibrate, distill

SMALL: dict[str, Any] = BERT | {"num_key_value_heads": 2} | ENDS
MOE: dict[str, Any] = SMALL | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
MAKERS: dict[str, Any] = {
    "mixtral": lambda: T.MixtralForCausalLM(T.MixtralConfig(**SMALL, num_local_experts=4)),
    "qwen3": lambda: T.Qwen3MoeForCausalLM(T.Qwen3MoeConfig(**dict[str, Any](MOE, head_dim=8))),
    "olmoe": lambda: T.OlmoeForCausalLM(T.OlmoeConfig(**SMALL, num_experts=4, num_experts_per_tok=2)),
}
IDS = torch.arange(36).reshape(3, 12) * 5 % 64
BATCH = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
CONFIGS = {
    "w4a8": QuantConfig.parse("w4a8"),
    "w2a8": QuantConfig.parse("w2a8"),
    "w4a16g4": QuantConfig.parse("w4a16g4"),
    "learned": QuantConfig(Grid(3, symmetric=False), ranges="learned"),
    "minmax": QuantConfig(Grid(4, per="tensor"), Grid(8, symmetric=False, per="token"), ranges="minmax"),
    "static": QuantConfig(Grid(4), Grid(8, per="tensor")),
}


def teacher_of(name: str) -> Any:
    torch.manual_seed(0)
    model = spread(MAKERS[name]())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 3:
                parameter.normal_(0, 0.25)
    return model


def experts_of(model: nn.Module) -> dict[str, Any]:
    return {n: m for n, m in model.named_modules() if isinstance(m, QuantExpertLinear | PackedExpertLinear)}


@pytest.mark.parametrize("name", MAKERS)
def test_most_of_the_model_is_quantized_and_the_teacher_is_as_it_was(name: str) -> None:
    teacher = teacher_of(name)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    student = quantize_model(teacher, QuantConfig.parse("w8a16"))
    plan = plan_of(student)
    share = Share.of(teacher, plan.chosen, plan.left)
    assert share.quantized > 0.7 * share.total and not share.formless.keys() - {"TopKRouter"} - {
        kind for kind in share.formless if "Router" in kind
    }
    assert len(experts_of(student)) == 2 and all(
        coverage(student)[each].startswith("weights") for each in experts_of(student)
    )
    assert all(torch.equal(value, teacher.state_dict()[key]) for key, value in before.items())
    with torch.no_grad():
        want, got = teacher(IDS).logits, student(IDS).logits
    assert float((got - want).norm() / want.norm()) < 0.05


@pytest.mark.parametrize("name", MAKERS)
def test_in_floats_they_answer_as_the_fused_module_does(name: str) -> None:
    """With levels so fine that rounding does not show, but for one layer's in few bits."""
    teacher = teacher_of(name)
    (path,) = (n for n, m in teacher.named_modules() if fused_weights(m))
    fused = teacher.get_submodule(path)
    student = quantize_model(teacher, QuantConfig(None, rules=((f"{path}.down_proj", QuantConfig(Grid(8))),)))
    layer = student.get_submodule(f"{path}.down_proj")
    with torch.no_grad():
        fused.down_proj.copy_(layer.dequantized().view_as(fused.down_proj))
        x, chosen = torch.randn(7, 16), torch.rand(7, 4).topk(2).indices
        weights = torch.rand(7, 2)
        torch.testing.assert_close(student.get_submodule(path)(x, chosen, weights), fused(x, chosen, weights))
        lone = torch.zeros(3, 2, dtype=torch.int64)  # one expert for all, the others idle
        torch.testing.assert_close(
            student.get_submodule(path)(x[:3], lone, weights[:3]), fused(x[:3], lone, weights[:3])
        )


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("name", ["mixtral", "qwen3"])
def test_a_trained_student_comes_back_bit_for_bit(name: str, config: QuantConfig, tmp_path: Path) -> None:
    student = quantize_model(teacher_of(name), config)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    calibrate(student, [BATCH])
    again: Any = zsaq.load(zsaq.save(student, tmp_path / "x"))
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, student(IDS).logits)
    assert coverage(again) == coverage(student) and len(experts_of(again)) == 2
    each = next(iter(experts_of(student)))
    assert torch.equal(again.get_submodule(each).weight.flatten(0, 1), student.get_submodule(each).dequantized())
    twice = zsaq.load(zsaq.save(again, tmp_path / "y"))
    with torch.no_grad():
        assert torch.equal(twice(IDS).logits, again(IDS).logits)


def test_each_row_of_each_expert_has_a_scale() -> None:
    student = quantize_model(teacher_of("mixtral"), QuantConfig.parse("w4a16"))
    for layer in experts_of(student).values():
        experts, rows, columns = layer.weight.shape
        codes, scale, _ = layer.weight_quantizer.codes(layer.rows())
        assert scale.shape == (experts * rows, 1) and codes.shape == (experts * rows, columns)


@pytest.mark.parametrize("rho", [0.0, 0.05])
def test_experts_learn(rho: float) -> None:
    teacher = teacher_of("mixtral")
    student = quantize_model(teacher, QuantConfig(Grid(3), Grid(8, per="token"), ranges="learned"))
    before = copy.deepcopy(student.state_dict())
    adam: Any = torch.optim.AdamW(parameter_groups(student, 1e-3), 1e-3)
    distill(student, teacher, repeat([BATCH]), KL(), SAM(adam, student, rho) if rho else adam, 5)
    for name, layer in experts_of(student).items():
        assert not torch.equal(layer.weight, before[f"{name}.weight"])
        assert not torch.equal(layer.weight_quantizer.ranges.scale, before[f"{name}.weight_quantizer.ranges.scale"])


def test_gptq_leaves_them_rounded_to_nearest_and_inundation_sees_their_rows() -> None:
    student = quantize_model(teacher_of("mixtral"), QuantConfig.parse("w4a16"))
    before = {name: layer.weight.clone() for name, layer in quant_layers(student)}
    block = next((n, m) for n, m in student.named_modules() if n.endswith("layers.0"))
    compensate(student, [BATCH], [block])
    moved = {name for name, layer in quant_layers(student) if not torch.equal(layer.weight, before[name])}
    assert moved and not moved & set(experts_of(student))
    rows = {id(code.weight): code.rows() for code in weight_codes(student)}
    assert all(rows[id(layer.weight)].shape == layer.rows().shape for layer in experts_of(student).values())


def test_rounded_at_load(tmp_path: Path) -> None:
    teacher = teacher_of("mixtral")
    teacher.save_pretrained(tmp_path / "teacher")
    model: Any = T.AutoModelForCausalLM.from_pretrained(tmp_path / "teacher", quantization_config=ZsaqConfig("w4a8"))
    student = quantize_model(teacher, "w4a8")
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, student(IDS).logits) and coverage(model) == coverage(student)


def test_rules_know_them_by_their_names() -> None:
    teacher, config = teacher_of("mixtral"), QuantConfig.parse("w4a16")
    left = make_plan(teacher, dataclasses.replace(config, rules=(("*.experts.*", None),))).left
    assert sum(reason == "left alone by a rule" for reason in left.values()) == 2
    mixed = dataclasses.replace(config, rules=(("*.down_proj", QuantConfig.parse("w8a16")),))
    assert {grid for name, grid in coverage(quantize_model(teacher, mixed)).items() if "experts" in name} == {
        "weights 4-bit per channel, inputs float", "weights 8-bit per channel, inputs float"
    }  # fmt: skip


class Odd(nn.Module):
    """Says what the known ones say, and has a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj = nn.Parameter(torch.zeros(2, 8, 4)), nn.Parameter(torch.zeros(2, 4, 4))
        self.has_gate, self.is_transposed, self.has_bias = True, False, True

    def _apply_gate(self, x: Tensor) -> Tensor:
        return x


def test_layouts_that_are_not_known_have_no_quantized_form() -> None:
    odd = Odd()
    assert not fused_weights(odd)
    odd.has_bias = False
    assert not fused_weights(odd), "its forward is its own"
    config = T.GptOssConfig(**SMALL, num_local_experts=4, head_dim=8)
    with pytest.raises(
        ValueError, match=r"Without a quantized form: GptOssExperts.*\('model\.layers\.\*\.mlp\.experts', None"
    ):
        quantize_model(spread(T.GptOssForCausalLM(config)), "w4a16")
