import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from toys import batches, bert, gpt2, llama, mlp, opt
from zsaq import Grid, QuantConfig, coverage, parameter_groups, quantize_model
from zsaq.quant.layers import QuantConv1D, QuantConv2d, QuantEmbedding, QuantLinear, quant_layers

W4 = QuantConfig.parse("w4a8")


def ruled(*rules) -> QuantConfig:
    return dataclasses.replace(W4, rules=rules)


def test_a_student_is_a_copy_with_names_identity_and_types_kept() -> None:
    teacher = bert()
    before = {name: p.clone() for name, p in teacher.named_parameters()}
    student = quantize_model(teacher, dataclasses.replace(W4, ranges="minmax"))
    assert [n for n, _ in student.named_parameters()][: len(before)] and not any(quant_layers(teacher))
    assert all(torch.equal(p, before[n]) for n, p in teacher.named_parameters())
    latent = dict(student.named_parameters())
    assert all(torch.equal(latent[n], p) for n, p in before.items())
    layer = student.bert.encoder.layer[0].output.dense
    assert isinstance(layer, QuantLinear) and isinstance(layer, nn.Linear) and not student.training


@pytest.mark.parametrize("make", [bert, gpt2, opt, llama])
def test_heads_norms_and_position_tables_stay_in_floats(make) -> None:
    student = quantize_model(make(), QuantConfig.parse("w2a8"))
    states = coverage(student)
    owners = {n for n, m in student.named_modules() if n and any(True for _ in m.parameters(recurse=False))}
    assert owners <= set(states)
    outside = [n for n in states if not n.startswith(f"{student.base_model_prefix}.")]
    assert outside and all("head stays in floats" in states[n] for n in outside)
    assert all("left alone" in states[n] for n in states if "norm" in n.lower() or "ln_" in n or "position" in n)
    inside = [m for m in student.base_model.modules() if type(m) in (nn.Linear, Conv1D)]
    assert not inside
    with torch.no_grad():
        assert not torch.allclose(student(**batches(1)[0]).logits, make().eval()(**batches(1)[0]).logits, atol=1e-3)


def test_a_table_tied_to_the_head_stays_in_floats_with_it() -> None:
    student = quantize_model(gpt2(), W4)
    assert coverage(student)["transformer.wte"] == "left alone: tied to lm_head, which stays in floats"
    assert student.lm_head.weight is student.transformer.wte.weight


def test_a_rule_for_the_table_quantizes_both_ends_with_one_quantizer() -> None:
    student = quantize_model(gpt2(), ruled(("transformer.wte", W4)))
    table, head = student.transformer.wte, student.lm_head
    assert isinstance(table, QuantEmbedding) and isinstance(head, QuantLinear)
    assert table.weight is head.weight and table.weight_quantizer is head.weight_quantizer
    assert torch.equal(head.dequantized()[[3, 5]], table(torch.tensor([3, 5])))


def test_a_rule_for_the_tied_head_alone_says_what_to_write() -> None:
    with pytest.raises(ValueError, match=r"lm_head is tied to the table transformer\.wte; write the rule"):
        quantize_model(gpt2(), ruled(("lm_head", W4)))


def test_rules_leave_alone_change_and_name_heads() -> None:
    rules = (("*.layer.0.*", None), ("*.intermediate.dense", QuantConfig.parse("w8a16")), ("classifier", W4))
    states = coverage(quantize_model(bert(), ruled(*rules)))
    assert states["bert.encoder.layer.0.output.dense"] == "left alone: left alone by a rule"
    assert states["bert.encoder.layer.1.intermediate.dense"] == "weights 8-bit per channel, inputs float"
    assert states["classifier"].startswith("weights 4-bit per channel, inputs 8-bit per token")


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (ruled(("decoder.*", None)), r"decoder\.\*"),
        (ruled(("*", None)), "nothing would be quantized"),
        (QuantConfig.parse("w4a8g5"), "group size 5 does not divide"),
        (QuantConfig(None), "nothing would be quantized"),
    ],
)
def test_what_cannot_be_is_named(config: QuantConfig, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        quantize_model(bert(), config)


def test_a_quantized_teacher_is_refused_and_a_float_model_has_no_coverage() -> None:
    with pytest.raises(ValueError, match="quantized already"):
        quantize_model(quantize_model(mlp(), W4), W4)
    with pytest.raises(ValueError, match=r"zsaq\.quantize_model"):
        coverage(mlp())


def test_layers_compute_on_rounded_weights_and_inputs() -> None:
    for layer, x in (
        (nn.Linear(6, 5), torch.randn(3, 6)),
        (Conv1D(5, 6), torch.randn(3, 6)),
        (nn.Conv2d(3, 4, 3, padding=1, stride=2), torch.randn(2, 3, 8, 8)),
    ):
        model = nn.Sequential(layer)
        config = QuantConfig(Grid(3), None, ranges="minmax")
        student = quantize_model(model, config)[0]
        rows = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
        scale = rows.flatten(1).abs().amax(1, keepdim=True) / 3
        weight = ((rows.flatten(1) / scale).round().clamp(-4, 3) * scale).view(rows.shape)
        expected = F.conv2d(x, weight, layer.bias, 2, 1) if isinstance(layer, nn.Conv2d) else x @ weight.T + layer.bias
        assert isinstance(student, QuantLinear | QuantConv1D | QuantConv2d)
        assert torch.allclose(student(x), expected, atol=1e-5)


def test_a_learned_scale_moves_relatively_as_fast_as_its_weights() -> None:
    student = quantize_model(mlp(), dataclasses.replace(QuantConfig.parse("w4a8"), ranges="learned"))
    rest, *scales = parameter_groups(student, 1e-3)
    assert rest["lr"] == 1e-3 and len(scales) == 2
    for group, (_, layer) in zip(scales, quant_layers(student), strict=True):
        (scale,) = group["params"]
        share = (scale.mean() / layer.weight.square().mean().sqrt()).item()
        assert group["lr"] == pytest.approx(1e-3 * share, rel=1e-4)
    assert sum(len(g["params"]) for g in (rest, *scales)) == len(list(student.parameters()))


def test_a_model_loaded_in_few_bits_is_refused() -> None:
    teacher = mlp()
    teacher[0].weight = nn.Parameter(torch.zeros(24, 16, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"0\.weight holds integers.*give the float model"):
        quantize_model(teacher, QuantConfig.parse("w4a8"))


@pytest.mark.parametrize(
    ("rules", "named"),
    [
        ((("*LayerNorm*", QuantConfig(Grid(8))),), "gives bits to LayerNorm"),
        ((("*", None), ("*query*", QuantConfig(Grid(8)))), "decides nothing"),
        (
            (("*query*", QuantConfig(None, embedding=Grid(8))),),
            r"grid for embedding .*no token table, but on bert\.",
        ),
        ((("*query*", QuantConfig(None, Grid(8, per="token"))),), r"'\*query\*' has a grid for inputs .*none for weig"),
    ],
)
def test_a_rule_that_does_nothing_is_named(rules, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        quantize_model(bert(), QuantConfig(Grid(4), rules=rules))


@pytest.mark.parametrize("own", ["w8a8", "w8a8e16", "w8a8-s16", "w8a8e4"])
def test_a_rule_may_be_any_text(own: str) -> None:
    """Each has a grid for tables, or none, whatever layers it is for."""
    ruled = dataclasses.replace(QuantConfig.parse("w4a8e4"), rules=(("*.q_proj", QuantConfig.parse(own)),))
    assert coverage(quantize_model(llama(), ruled))["model.layers.0.self_attn.q_proj"].startswith("weights 8-bit")
    base = dataclasses.replace(QuantConfig.parse("w16a8"), rules=(("*.q_proj", QuantConfig.parse(own)),))
    assert coverage(quantize_model(llama(), base))["model.layers.1.self_attn.q_proj"].startswith("weights 8-bit")


@pytest.mark.parametrize("text", ["w16a8e8", "w16a8e4", "w16a8se8"])
def test_inputs_that_no_layer_rounds_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"grid for inputs .* none for weights.*or leave inputs in floats \(a16\)"):
        quantize_model(llama(), text)
    assert coverage(quantize_model(llama(), "w16a16e8"))["model.embed_tokens"].startswith("weights 8-bit")


def test_a_configuration_may_be_its_text_and_nothing_else() -> None:
    student = quantize_model(mlp(), "w4a8")
    assert coverage(student) == coverage(quantize_model(mlp(), W4))
    with pytest.raises(ValueError, match="'four' is no quantization; the form is"):
        quantize_model(mlp(), "four")
    for given in (4, None, {"weight": {"bits": 4}}):
        with pytest.raises(ValueError, match=r"the configuration is .*; give a text such as 'w4a8g128', or a Quant"):
            quantize_model(mlp(), given)  # type: ignore[arg-type]


@pytest.mark.parametrize("grid", [Grid(8, per="token"), Grid(8, symmetric=False, per="token"), Grid(8, per=8)], ids=str)
def test_a_convolution_s_input_has_one_range_or_none(grid: Grid) -> None:
    """Else each row of pixels would have scales of its own."""
    net = nn.Sequential(nn.Linear(8, 8), nn.Conv2d(3, 4, 3))
    before = [p.clone() for p in net.parameters()]
    with pytest.raises(
        ValueError, match=r"^1: .*row of pixels.*presets\.brecq\('w4a8', model\) and uniform.*zsaq\.quantize"
    ):
        quantize_model(net, QuantConfig(Grid(4), grid))
    assert type(net[1]) is nn.Conv2d and all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))
    for fits in (None, Grid(8, per="tensor")):
        assert isinstance(quantize_model(net, QuantConfig(Grid(4), fits))[1], QuantConv2d)
    ruled = QuantConfig(Grid(4), grid, rules=(("1", QuantConfig(Grid(4))),))
    assert coverage(quantize_model(net, ruled))["1"] == "weights 4-bit per channel, inputs float"


def test_groups_of_a_convolution_s_weights_run_over_its_whole_input() -> None:
    layer = quantize_model(nn.Sequential(nn.Conv2d(4, 6, 3)), QuantConfig(Grid(4, per=12)))[0]
    assert isinstance(layer, QuantConv2d)
    assert layer.weight_quantizer.codes(layer.rows().flatten(1))[1].shape == (6, 3, 1)
    with pytest.raises(ValueError, match="0: the group size 12 does not divide the input dimension 27"):
        quantize_model(nn.Sequential(nn.Conv2d(3, 6, 3)), QuantConfig(Grid(4, per=12)))


def test_groups_of_inputs_must_divide_by_the_name_of_the_layer() -> None:
    with pytest.raises(ValueError, match="0: the group size 5 does not divide the input dimension 8"):
        quantize_model(nn.Sequential(nn.Linear(8, 4)), QuantConfig(Grid(4), Grid(8, per=5)))
