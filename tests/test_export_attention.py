"""Nothing that a model's attention computes is lost in a graph: soft-caps, sinks, biases, windows, odd widths."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

from attention_toys import MODELS, SHARED, VOCABULARY, WINDOW, sharp
from zsaq import QuantConfig, calibrate, export, load, quantize_model
from zsaq.deploy.onnx.attention import Attention
from zsaq.deploy.onnx.session import Session
from zsaq.deploy.onnx.tracing import trace
from zsaq.deploy.onnx.weights import MODEL
from zsaq.deploy.onnx.write import to_onnx
from zsaq.deploy.parity import batches_of, verify, windows_of
from zsaq.io.inputs import answers_of, random_inputs

pytest.importorskip("onnxruntime")
NOISE = 1e-4  # of the largest; what is lost is hundreds of times as much
QUICK = ("gemma2: soft-cap",)


def texts(model: Any) -> dict[str, Tensor]:
    """Longer than the windows; one row padded, one with a hole."""
    inputs = random_inputs(model, (3, 3 * WINDOW))
    inputs["attention_mask"][1, 2 * WINDOW :] = 0
    inputs["attention_mask"][2, 3:6] = 0
    return inputs


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in MODELS])
def test_the_graph_answers_as_the_student(name: str, tmp_path: Path) -> None:
    floats = (("*.experts", None),) if name.startswith("gpt_oss") else ()  # they have no quantized form
    config = dataclasses.replace(QuantConfig.parse("w8a16"), rules=floats)
    quantize_model(sharp(name), config).save_pretrained(tmp_path / "student")
    to_onnx(tmp_path / "student", tmp_path / "onnx")
    model = load(tmp_path / "student")
    inputs = texts(model)
    with torch.no_grad():
        want = answers_of(model(**inputs))
    session = Session(tmp_path / "onnx" / MODEL, threads=1)
    arrays = session.run({name: value.numpy() for name, value in inputs.items()})
    got = {name: torch.from_numpy(array) for name, array in zip(session.answers, arrays, strict=True)}
    assert got.keys() == want.keys()
    for answer, tensor in want.items():
        decoded = answer == "logits" and "decoder_input_ids" in inputs  # whose tokens are all there
        seen = torch.ones(1) if decoded else inputs["attention_mask"][..., None]
        assert float(((got[answer] - tensor).abs() * seen).max() / tensor.abs().max()) < NOISE


@pytest.mark.parametrize("config", ["w4a8e8", pytest.param("w8a8se4", marks=pytest.mark.slow)])
def test_a_token_table_with_a_factor_agrees_with_its_rule(config: str, tmp_path: Path) -> None:
    student = quantize_model(sharp(QUICK[0]), config)
    calibrate(student, [texts(student)]).save_pretrained(tmp_path / "student")
    export(tmp_path / "student", "onnx")
    report = verify(tmp_path / "student", write=False)
    assert report["agrees"], report["zsaq onnx"]["disagree"]


def chosen(model: Any) -> set[bool]:
    """What was decided on the attentions of a model."""
    attention = Attention(model)
    model.config.use_cache = False
    with torch.no_grad():
        attention.choose(model, texts(model))
    assert attention.unknown == []
    return set(attention.plain.values())


@pytest.mark.parametrize("name", [n for n in MODELS if not n.startswith(("bloom", "mpt", "gpt_neo"))])
def test_only_what_computes_the_plain_rule_is_fused(name: str) -> None:
    assert chosen(sharp(name)) == {MODELS[name][3]}


def llama(monkeypatch: pytest.MonkeyPatch, eager: Any, **given: Any) -> Any:
    """A model whose attention is `eager`, and is given more."""
    real = modeling_llama.LlamaAttention.forward

    def forward(self: Any, *args: Any, **options: Any) -> Any:
        return real(self, *args, **options, **given)

    config = LlamaConfig(**SHARED)
    config._attn_implementation = "eager"
    model = LlamaForCausalLM(config).eval()
    forward.__wrapped__ = real  # type: ignore[attr-defined]
    monkeypatch.setattr(modeling_llama.LlamaAttention, "forward", forward)
    monkeypatch.setattr(modeling_llama, "eager_attention_forward", eager)
    return model


REAL: Any = modeling_llama.eager_attention_forward


def biased(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **given: Any) -> Any:
    """Reads what no argument tells."""
    out, weights = REAL(module, query, key, value, mask, **given)
    return out * (1 + 0.1 * module.layer_idx), weights  # type: ignore[operator]


def masked_no_more(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **given: Any) -> Any:
    return REAL(module, query, key, value, None, **given)


@pytest.mark.parametrize(
    ("eager", "given", "plain"),
    [
        (REAL, {}, {True}),
        (REAL, {"sliding_window": 4, "output_attentions": False, "softcap": None}, {True}),
        (REAL, {"softcap": 30.0}, {False}),
        (REAL, {"never_heard_of": 1}, {False}),
        (REAL, {"head_mask": torch.ones(4)}, {False}),
        (biased, {}, {True, False}),  # the first layer's index is 0
        (masked_no_more, {}, {False}),
    ],
)
def test_what_is_not_known_to_be_harmless_is_not_fused(
    monkeypatch: pytest.MonkeyPatch, eager: Any, given: dict[str, Any], plain: set[bool]
) -> None:
    assert chosen(llama(monkeypatch, eager, **given)) == plain


def test_attention_that_cannot_be_found_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Attention, "own", lambda self, module: None)
    with pytest.raises(ValueError, match=r"LlamaForCausalLM cannot .* what LlamaAttention computes .* cannot be found"):
        trace(llama(monkeypatch, REAL))


def test_texts_of_a_parity_report_are_longer_than_windows_and_have_holes() -> None:
    model = sharp("mistral: window")
    assert windows_of(model) == [WINDOW]
    model.config.sliding_window = 40
    batches = batches_of(model, 0)
    assert [tuple(b["input_ids"].shape) for b in batches] == [(1, 2), (1, 16), (3, 24), (1, 48)]
    masks = batches[2]["attention_mask"]
    assert masks[1].tolist() == [1] * 13 + [0] * 11 and masks[2].tolist() == [1] * 3 + [0] * 3 + [1] * 18
    assert max(int(b["input_ids"].max()) for b in batches) < VOCABULARY
