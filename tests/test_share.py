"""What is left in floats is told by its class, and a model that mostly stays in them is refused."""

import ast
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import zsaq
from test_heads import BERT, ENDS, GPT2
from toys import spread
from vision_toys import vit
from zsaq import Grid, QuantConfig, coverage, quantize_model
from zsaq.quant.kinds import kind_of
from zsaq.quant.plan import make_plan
from zsaq.quant.share import Share

W4 = QuantConfig.parse("w4a16")


class Named(nn.Linear):
    """With nothing of its own but a name."""

    def named(self) -> int:
        return 1


class Own(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight / self.weight.norm(), self.bias)


class Standardized(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight - weight.mean(), bias)


class Table(nn.Embedding):
    """As Gemma's."""

    def __init__(self, rows: int, width: int, factor: float) -> None:
        super().__init__(rows, width)
        self.scalar_embed_scale = factor
        self.embed_scale: Tensor
        self.register_buffer("embed_scale", torch.tensor(factor), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.embed_scale.to(self.weight.dtype)


class Shifted(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input + 2)


class Fused(nn.Module):
    """Experts in one parameter, with a forward that nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(4, 16, 16))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bi,eoi->bo", x, self.weights)


def parametrized() -> nn.Module:
    return parametrizations.weight_norm(nn.Linear(8, 8))


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (Named(4, 4), nn.Linear), (Own(4, 4), None), (Standardized(2, 2, 1), None), (Table(4, 4, 2.0), nn.Embedding),
        (Shifted(4, 4), None), (parametrized(), None), (nn.MultiheadAttention(8, 2).out_proj, None),
        (nn.Conv2d(2, 2, 1), nn.Conv2d), (nn.LayerNorm(4), None), (nn.Conv1d(2, 2, 1), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)  # fmt: skip
def test_a_subclass_counts_if_it_answers_as_its_base_does(module: nn.Module, kind: type | None) -> None:
    assert kind_of(module) is kind


def test_a_subclass_keeps_what_else_it_has() -> None:
    student: Any = quantize_model(nn.Sequential(Named(8, 8)), W4)
    assert isinstance(student[0], Named) and student[0].named() == 1
    assert type(student[0]) is type(quantize_model(nn.Sequential(Named(8, 4)), W4)[0])
    plain = quantize_model(nn.Sequential(nn.Linear(8, 8)), W4)
    plain.load_state_dict(student.state_dict())
    x = torch.randn(3, 8)
    assert torch.equal(student(x), plain(x))


def gemma(**more: Any) -> Any:
    config = T.GemmaConfig(**BERT, num_key_value_heads=1, head_dim=8, **ENDS, **more)
    return spread(T.GemmaForCausalLM(config))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tie", [True, False])
def test_a_scaled_table_is_quantized_and_comes_back_scaled(dtype: torch.dtype, tie: bool, tmp_path: Path) -> None:
    teacher = gemma(tie_word_embeddings=tie)
    scale, name = 16**0.5, "model.embed_tokens"
    config = replace(QuantConfig.parse("w8a16"), rules=((name, QuantConfig.parse("w8a16")),) if tie else ())
    student = quantize_model(teacher, config).to(dtype)
    assert coverage(student)[name] == "weights 8-bit per channel"
    again = zsaq.load(zsaq.save(student, tmp_path / "x"))
    assert float(again.model.embed_tokens.embed_scale) == scale, "it is in no file"
    rows = student.model.embed_tokens(torch.arange(64)).detach()
    assert torch.equal(again.model.embed_tokens(torch.arange(64)), rows)
    assert torch.allclose(rows.float(), scale * teacher.model.embed_tokens.weight, atol=0.02 * scale)
    if tie and dtype == torch.float32:
        assert torch.equal(again.lm_head.weight * scale, rows)
    with torch.no_grad():
        ids = torch.arange(12).view(1, 12)
        assert dtype != torch.float32 or torch.equal(again(ids).logits, student(ids).logits)
    assert again.model.embed_tokens.cache is None or tie  # looking rows up unpacks no table


@pytest.mark.parametrize(
    "model",
    [
        (
            T.FalconForCausalLM,
            T.FalconConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2),
        ),
        (T.EfficientNetForImageClassification, T.EfficientNetConfig(width_coefficient=0.1, depth_coefficient=0.1)),
    ],
    ids=["falcon", "efficientnet"],
)
def test_subclasses_in_transformers_are_quantized(model: Any) -> None:
    student = quantize_model(spread(model[0](model[1])), W4)
    assert not any("Linear" in state or "Conv2d" in state for state in coverage(student).values())


def mostly(*more: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 16), *more)


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (lambda: mostly(Fused()), r"only 20% of the bytes.*Fused 79%.*rules=\(\('1', None\),\)"),
        (lambda: mostly(Own(16, 16), Own(16, 16)), "Without a quantized form: Own;"),
        (lambda: mostly(Standardized(4, 32, 3)), "Without a quantized form: Standardized"),
        (lambda: mostly(nn.Conv1d(4, 32, 3), Fused()), "Without a quantized form: Fused, Conv1d"),
        (lambda: mostly(nn.LSTM(16, 16)), "Without a quantized form: LSTM"),
        (lambda: mostly(nn.ConvTranspose2d(16, 8, 3)), "Without a quantized form: ConvTranspose2d"),
        (lambda: mostly(nn.MultiheadAttention(16, 2)), "MultiheadAttention"),
    ],
)
def test_what_would_mostly_stay_in_floats_is_refused_unless_a_rule_says_so(model: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named) as stop:
        quantize_model(model(), W4)
    rules = ast.literal_eval(str(stop.value).rpartition("rules=")[2][:-1])
    assert "left alone by a rule" in make_plan(model(), replace(W4, rules=rules)).left.values()


def test_what_the_configuration_wishes_is_no_reason_to_refuse() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(64, 64), Own(16, 16))
    assert set(make_plan(model, replace(W4, rules=(("1", None), ("2", None)))).chosen) == {"0"}
    table = T.GPT2LMHeadModel(T.GPT2Config(**{**GPT2, **dict[str, Any](vocab_size=2000)}))
    plan = make_plan(table, W4)  # heads, and tables that are tied to them, stay in floats
    share = Share.of(table, plan.chosen, plan.left)
    assert share.quantized < share.total / 4 and not share.wished and "Embedding 9" in share.told()


def test_share_counts_every_byte_once() -> None:
    model = spread(T.BertForMaskedLM(T.BertConfig(**BERT)))
    plan = make_plan(model, W4)
    share = Share.of(model, plan.chosen, plan.left)
    assert share.total == sum(p.numel() * p.itemsize for p in model.parameters())
    assert share.quantized == sum(model.get_submodule(name).weight.numel() * 4 for name in plan.chosen)
    assert str(share).startswith("46% of the bytes of BertForMaskedLM are quantized; in floats stay Embedding")


def test_who_asks_for_no_weights_is_not_told_that_few_are_quantized() -> None:
    only = QuantConfig(weight=None, attention=Grid(8, symmetric=False, per="tensor"))
    covered = coverage(quantize_model(vit(), only))
    assert {name for name, how in covered.items() if "left alone" not in how} == {
        name for name in covered if name.endswith("attention")
    }
