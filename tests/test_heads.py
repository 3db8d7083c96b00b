"""Heads are found by what they are, and layers that share a weight share one fate, also on disk."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T
from torch import nn

import zsaq
from zsaq import QuantConfig, coverage, quantize_model
from zsaq.quant.plan import make_plan, plan_of

W4 = QuantConfig.parse("w4a16")
BERT: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 32,
}  # fmt: skip
ENDS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
PAIR: dict[str, Any] = {
    "vocab_size": 64, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 32,
    "decoder_start_token_id": 1, **ENDS,
}  # fmt: skip
SPEECH: dict[str, Any] = {key: value for key, value in PAIR.items() if key != "max_position_embeddings"} | {
    "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16, "classifier_proj_size": 12
}  # fmt: skip
T5: dict[str, Any] = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
VIT: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
GPT2: dict[str, Any] = {"vocab_size": 64, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, **ENDS}
TWO = T.CLIPConfig(text_config=BERT | ENDS, vision_config=VIT, projection_dim=12)
CODERS = T.EncoderDecoderConfig.from_encoder_decoder_configs(T.BertConfig(**BERT), T.BertConfig(**BERT))
START: Any = {"decoder_start_token_id": 0}

HEADS: list[tuple[str, Any, list[str]]] = [
    ("T5ForConditionalGeneration", T.T5Config(**T5, **START), ["lm_head"]),
    ("T5ForQuestionAnswering", T.T5Config(**T5, **START), ["qa_outputs"]),
    ("T5ForTokenClassification", T.T5Config(**T5), ["classifier"]),
    ("UMT5ForConditionalGeneration", T.UMT5Config(**T5, **START), ["lm_head"]),
    ("BartForConditionalGeneration", T.BartConfig(**PAIR), ["lm_head"]),
    ("BartForSequenceClassification", T.BartConfig(**PAIR), ["classification_head.out_proj"]),
    ("MarianMTModel", T.MarianConfig(**PAIR), ["lm_head"]),
    ("PegasusForConditionalGeneration", T.PegasusConfig(**PAIR), ["lm_head"]),
    ("WhisperForConditionalGeneration", T.WhisperConfig(**SPEECH), ["proj_out"]),
    ("WhisperForAudioClassification", T.WhisperConfig(**SPEECH), ["classifier"]),
    ("CLIPForImageClassification", TWO, ["classifier"]),
    ("SiglipForImageClassification", T.SiglipConfig(text_config=BERT | ENDS, vision_config=VIT), ["classifier"]),
    ("DeiTForImageClassificationWithTeacher", T.DeiTConfig(**VIT), ["cls_classifier", "distillation_classifier"]),
    ("BeitForImageClassification", T.BeitConfig(**VIT), ["classifier"]),
    ("ResNetForImageClassification", T.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1]), ["classifier.1"]),
    ("BertForTokenClassification", T.BertConfig(**BERT), ["classifier"]),
    ("BertForMultipleChoice", T.BertConfig(**BERT), ["classifier"]),
    ("BertForMaskedLM", T.BertConfig(**BERT), ["cls.predictions.decoder"]),
    ("GPT2ForSequenceClassification", T.GPT2Config(**GPT2), ["score"]),
    ("EncoderDecoderModel", CODERS, ["decoder.cls.predictions.decoder"]),
]


@pytest.mark.parametrize(("name", "config", "named"), HEADS, ids=[name for name, _, _ in HEADS])
def test_heads_stay_in_floats_and_their_ties_whole(name: str, config: Any, named: list[str]) -> None:
    student = quantize_model(getattr(T, name)(config).eval(), W4)
    states, owners = coverage(student), {}
    assert [states[head] for head in named] == ["left alone: the head stays in floats"] * len(named)
    for path, module in student.named_modules():
        if (weight := module._parameters.get("weight")) is not None:
            owners.setdefault(id(weight), []).append(path)
    for ends in owners.values():  # quantized by the codes of one table, or not at all
        quantized = {plan_of(student).tied.get(end, end) for end in ends if end in plan_of(student).chosen}
        assert len(quantized) == 0 or (len(quantized) == 1 and all(end in plan_of(student).chosen for end in ends))
        stated = [states[end] for end in ends if end in states]
        assert len(ends) == 1 or sum("the head stays" in state for state in stated) in (0, 1)
        assert all(f"tied to {named[-1]}, which stays" in state for state in stated if "tied" in state)


@pytest.mark.parametrize(
    ("name", "config", "left"),
    [
        ("CLIPModel", TWO, set()),
        ("BertModel", T.BertConfig(**dict[str, Any](BERT, num_labels=16)), {"embeddings.position_embeddings"}),
        ("T5Model", T.T5Config(**T5, **START), set()),
    ],
)
def test_a_model_without_a_head_has_none(name: str, config: Any, left: set[str]) -> None:
    """A pooler may be as wide as the labels; tied token tables read the same codes."""
    states = coverage(quantize_model(getattr(T, name)(config).eval(), W4))
    assert not any("head" in state or "tied" in state for state in states.values()) and left <= states.keys()


@pytest.mark.parametrize(
    ("name", "config", "table", "ends"),
    [
        ("T5ForConditionalGeneration", T.T5Config(**T5, **START), "shared", 4),
        ("T5EncoderModel", T.T5Config(**T5), None, 2),
        ("BartForConditionalGeneration", T.BartConfig(**PAIR), "model.shared", 4),
        ("BartForSequenceClassification", T.BartConfig(**PAIR), None, 3),
        ("MarianMTModel", T.MarianConfig(**PAIR), "model.shared", 4),
        ("GPT2LMHeadModel", T.GPT2Config(**GPT2), "transformer.wte", 2),
    ],
)
@pytest.mark.filterwarnings("ignore:the answers of what was saved")
def test_ends_of_a_tie_read_one_table_s_codes_and_come_back(name, config, table, ends: int, tmp_path: Path) -> None:
    rules = () if table is None else ((table, QuantConfig.parse("w4a8")),)
    student = quantize_model(getattr(T, name)(config).eval(), replace(QuantConfig.parse("w4a8"), rules=rules))
    assert len(plan_of(student).tied) == ends - 1
    again = zsaq.load(zsaq.save(student, tmp_path / "x"), type(student))
    ids = torch.arange(2, 10).view(1, 8)
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if config.is_encoder_decoder and table else {})
    with torch.no_grad():
        assert torch.equal(student(**inputs)[0], again(**inputs)[0])
    assert coverage(again) == coverage(student)


@pytest.mark.parametrize("rule", [("lm_head", W4), ("encoder.*", W4)])
def test_a_rule_for_one_end_of_a_tie_alone_says_what_to_write(rule: tuple[str, QuantConfig]) -> None:
    model = T.T5ForConditionalGeneration(T.T5Config(**T5, **START))
    if rule[0] == "lm_head":
        with pytest.raises(ValueError, match=r"lm_head is tied to the table shared; write the rule for shared"):
            make_plan(model, replace(W4, embedding=W4.weight, rules=(rule,)))
    else:  # the rule names a table, whose codes all ends then read
        plan = make_plan(model, replace(W4, rules=((rule[0], QuantConfig.parse("w4a16e8")),)))
        assert {"shared", "lm_head", "decoder.embed_tokens"} <= plan.tied.keys()


def test_linear_layers_that_share_a_weight_stay_together() -> None:
    model = nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8), "c": nn.Linear(8, 8)})
    model["b"].weight = model["a"].weight
    assert set(make_plan(model, W4).chosen) == {"a", "b", "c"}
    plan = make_plan(model, replace(W4, rules=(("a", None),)))
    assert plan.left == {"a": "left alone by a rule", "b": "tied to a, which stays in floats"}
    with pytest.raises(ValueError, match=r"b is tied to a, which stays in floats .*name all ends"):
        make_plan(model, replace(W4, rules=(("a", None), ("b", W4))))
