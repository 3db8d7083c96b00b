"""Products of attention on rounded numbers: the rule by hand, saved, loaded and exported, and what is refused."""

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForImageClassification

from vision_toys import deit, images, resnet, swin, vit

sys.path.insert(0, str(Path(__file__).parent.parent))

from recipes.benchmarks.tiny import SIDE, tiny
from zsaq import Grid, ImageSpec, QuantConfig, calibrate, coverage, export, quantize_model, save
from zsaq.deploy.parity import verify
from zsaq.quant.attention import ROUNDINGS, QuantAttention, quant_attentions, why_not
from zsaq.vision.presets import brecq, psaq, uniform

FAMILIES: dict[str, tuple[Callable[[], Any], int]] = {
    "vit": (vit, 16),
    "deit": (deit, 16),
    "swin": (swin, 32),
    **{
        name: (lambda name=name: tiny(f"{name}ForImageClassification"), SIDE)
        for name in ("Dinov2", "Dinov2WithRegisters", "CLIP", "Siglip", "Beit")
    },
}
SPEC = ImageSpec(classes=5, size=16)
GRID = Grid(4, symmetric=False, per="tensor")


def student_of(family: str, text: str = "w8a8p4") -> tuple[Any, Tensor]:
    make, size = FAMILIES[family]
    teacher, pixels = make(), images(4, size)
    return calibrate(quantize_model(teacher, psaq(text, teacher)), [{"pixel_values": pixels}]), pixels[:2]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_products_take_is_rounded_saved_and_loaded(family: str, tmp_path: Path) -> None:
    student, pixels = student_of(family)
    plain, _ = student_of(family, "w8a8")
    seen: dict[str, set[int]] = {name: set() for name in ROUNDINGS}
    for _, attention in quant_attentions(student):
        for name, rounding in attention.roundings.items():
            rounding.register_forward_hook(lambda _, __, y, name=name: seen[name].add(len(torch.unique(y))))  # type: ignore[arg-type]
    with torch.no_grad():
        logits = student(pixel_values=pixels).logits
        assert not torch.equal(logits, plain(pixel_values=pixels).logits)
    assert all(min(levels) > 2 and max(levels) <= 16 for levels in seen.values()), seen
    told = [how for how in coverage(student).values() if how.startswith("products of 4-bit")]
    assert len(told) == len(list(quant_attentions(student))) >= 2
    save(student, tmp_path / "student")
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "student")
    with torch.no_grad():
        assert torch.equal(again(pixel_values=pixels).logits, logits)
        for way in ("eager", "sdpa"):  # whichever way the rest of the model goes
            again.set_attn_implementation(way)
            assert torch.equal(again(pixel_values=pixels).logits, logits)


def test_the_rule_by_hand() -> None:
    student, pixels = student_of("vit")
    attention = student.vit.layers[0].attention
    states: list[Tensor] = []
    attention.register_forward_pre_hook(
        lambda _, args, kwargs: states.append((*args, *kwargs.values())[0]), with_kwargs=True
    )
    answers: list[Tensor] = []
    attention.o_proj.register_forward_pre_hook(lambda _, args: answers.append(args[0]))
    with torch.no_grad():
        student(pixel_values=pixels)

        def heads(x: Tensor, name: str) -> Tensor:
            quantizer = attention.roundings[name].output_quantizer
            scale, zero = quantizer.ranges.scale, quantizer.ranges.zero
            x = x.unflatten(-1, (2, 16)).transpose(1, 2) if x.ndim == 3 else x
            return ((x / scale + zero).round().clamp(0, 15) - zero) * scale

        q, k, v = (heads(getattr(attention, f"{n[0]}_proj")(states[0]), n) for n in ("query", "key", "value"))
        probabilities = heads((q @ k.mT / 4).softmax(-1), "probabilities")
        wanted = (probabilities @ v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(answers[0], wanted, rtol=1e-5, atol=1e-5)


def test_a_rule_leaves_an_attention_alone_and_others_come_to_it_uncalibrated() -> None:
    teacher = vit()
    config = QuantConfig(attention=GRID, rules=(("vit.layers.0.attention", None),))
    student = quantize_model(teacher, config)
    assert [name for name, _ in quant_attentions(student)] == ["vit.layers.1.attention"]
    assert coverage(student)["vit.layers.0.attention"] == "left alone: left alone by a rule"
    with pytest.raises(ValueError, match="the static range has seen nothing"):
        student(pixel_values=images(2))


def test_without_a_grid_nothing_changes() -> None:
    teacher = vit()
    assert psaq("w8a8", teacher).attention is brecq("w4a4", teacher, SPEC).attention is None
    assert brecq("w4a4p8", teacher, SPEC).attention == Grid(8, symmetric=False, per="tensor")
    student = quantize_model(teacher, psaq("w8a8", teacher))
    assert not any(isinstance(module, QuantAttention) for module in student.modules())
    before = psaq("w8a8", teacher).to_dict()
    for config in (before, *(rule for _, rule in before["rules"])):
        del config["attention"]  # as files of before have it
    assert QuantConfig.from_saved(json.loads(json.dumps(before))) == psaq("w8a8", teacher)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"attention": {"bits": 8, "per": "token"}}, "attention is per 'token'"),
        ({"attention": {"bits": 8, "per": 4}}, "attention is per 4"),
        ({"attention": {"bits": 2, "per": "tensor", "levels": "half"}}, "'half' levels"),
        ({"attention": {"bits": 99}}, "bits"),
        ({"attention": [8]}, "Grid is"),
        ({"attention": {"bits": 8, "per": "tensor", "more": 1}}, "unknown keys"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantConfig.from_dict(config)


def test_models_without_such_attention_are_refused() -> None:
    with pytest.raises(ValueError, match="has none that is known"):
        quantize_model(resnet(), QuantConfig(attention=GRID))
    with pytest.raises(ValueError, match="the preset uniform is for nets of ReLUs"):
        uniform("w4a4p4", resnet())
    with pytest.raises(ValueError, match="no text of a preset"):
        psaq("w8a8p9", vit())


def test_attention_that_computes_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = vit()
    attention = teacher.vit.layers[1].attention
    assert why_not(attention) is None
    causal = copy.deepcopy(teacher)
    causal.vit.layers[1].attention.is_causal = True
    with pytest.raises(ValueError, match=r"vit.layers.1.attention: ViTAttention is causal"):
        quantize_model(causal, QuantConfig(attention=GRID))
    shared = copy.deepcopy(attention)
    shared.k_proj = nn.Linear(32, 16)
    assert "shares keys" in str(why_not(shared))
    known = type(attention).forward.__globals__
    own = known["eager_attention_forward"]
    monkeypatch.setitem(known, "eager_attention_forward", lambda *a, **k: tuple(2 * x for x in own(*a, **k)))
    assert "computes more than" in str(why_not(attention))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_onnx_rounds_them_too(family: str, tmp_path: Path) -> None:
    student, _ = student_of(family)
    save(student, tmp_path / "student")
    export(tmp_path / "student", "onnx")
    report = verify(tmp_path / "student", write=False)
    assert report["agrees"] and report["zsaq onnx"]["end_to_end"]["codes"] > 0
