"""Bits of a token table and of a head: what a configuration says of them is done, on disk too, or refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T
from torch import nn

import zsaq
from test_heads import BERT, GPT2, PAIR, START, T5, VIT
from zsaq import Grid, QuantConfig, ZsaqConfig, coverage, quantize_model
from zsaq.quant.packed import packed_layers
from zsaq.quant.plan import Plan, make_plan, plan_of

LLAMA: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 24, "head_dim": 8, "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
MIXED: dict[str, Any] = LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2}
TIED: list[tuple[str, Any, str, str]] = [  # class, config, table, head
    ("LlamaForCausalLM", T.LlamaConfig(**LLAMA, tie_word_embeddings=True), "model.embed_tokens", "lm_head"),
    ("Gemma3ForCausalLM", T.Gemma3TextConfig(**LLAMA), "model.embed_tokens", "lm_head"),
    ("MixtralForCausalLM", T.MixtralConfig(**MIXED, tie_word_embeddings=True), "model.embed_tokens", "lm_head"),
    ("GPT2LMHeadModel", T.GPT2Config(**GPT2), "transformer.wte", "lm_head"),
    ("BertForMaskedLM", T.BertConfig(**BERT), "bert.embeddings.word_embeddings", "cls.predictions.decoder"),
    ("T5ForConditionalGeneration", T.T5Config(**T5, **START), "shared", "lm_head"),
    ("BartForConditionalGeneration", T.BartConfig(**PAIR), "model.shared", "lm_head"),
]
IDS = [name for name, *_ in TIED]
UNTIED = T.LlamaConfig(**LLAMA, tie_word_embeddings=False)


def made(name: str, config: Any) -> Any:
    torch.manual_seed(0)
    return getattr(T, name)(config).eval()


def answers(model: Any) -> torch.Tensor:
    ids = torch.arange(3, 13)[None]
    with torch.no_grad():
        return model(ids, **({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})).logits


@pytest.mark.parametrize(("name", "config", "table", "head"), TIED, ids=IDS)
@pytest.mark.parametrize(("text", "bits"), [("w4a16e8", 8), ("w4a8e4", 4), ("w4a16h8", 8), ("w4a8h4g8", 4)])
@pytest.mark.filterwarnings("ignore:the answers of what was saved")
def test_both_ends_of_a_tie_are_quantized_where_either_was_asked_for(
    name: str, config: Any, table: str, head: str, text: str, bits: int, tmp_path: Path
) -> None:
    teacher = made(name, config)
    student = quantize_model(teacher, text)
    plan, told = plan_of(student), coverage(student)
    assert plan.tied[head] == table
    assert told[table] == f"weights {bits}-bit per channel"
    inputs = "8-bit per token" if "a8" in text else "float"
    assert told[head] == f"weights {bits}-bit per channel, inputs {inputs}"
    experts = [how for each, how in told.items() if "experts" in each and "Mixtral" in name and text[0:2] == "w4"]
    assert len(experts) == 2 * ("Mixtral" in name) and all(how.startswith("weights 4-bit") for how in experts)
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    zsaq.save(student, tmp_path / "x")
    again = zsaq.load(tmp_path / "x", type(student))
    assert torch.equal(answers(again), answers(student)) and coverage(again) == told
    stored = {each for each, layer in packed_layers(again) if layer.table is None}
    assert table in stored and head not in stored
    teacher.save_pretrained(tmp_path / "floats")
    rounded = type(teacher).from_pretrained(tmp_path / "floats", quantization_config=ZsaqConfig(text))
    assert torch.equal(answers(rounded), answers(student)) and coverage(rounded) == told


@pytest.mark.parametrize(("name", "config", "table", "head"), TIED, ids=IDS)
def test_a_text_that_names_neither_leaves_a_tied_table_alone(name: str, config: Any, table: str, head: str) -> None:
    model = made(name, config)
    for text in ("w4a8", "w4a8e16"):
        assert {table, head} <= make_plan(model, QuantConfig.parse(text)).left.keys()


@pytest.mark.parametrize(
    ("text", "table", "head"),
    [("w4a16e8", 8, None), ("w4a16e8h8", 8, 8), ("w4a16h4", 8, 4), ("w4a8e4h8g8", 4, 8), ("w4a16e16h4", None, 4)],
)
def test_without_a_tie_each_end_has_its_own_bits(
    text: str, table: int | None, head: int | None, tmp_path: Path
) -> None:
    student = quantize_model(made("LlamaForCausalLM", UNTIED), text)
    told = coverage(student)
    for name, bits in (("model.embed_tokens", table), ("lm_head", head)):
        assert told[name].startswith("left alone" if bits is None else f"weights {bits}-bit per channel")
    zsaq.save(student, tmp_path / "x")
    again = zsaq.load(tmp_path / "x")
    assert torch.equal(answers(again), answers(student)) and coverage(again) == told


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("w4a16e4h8", r"lm_head is tied to the table transformer\.wte.*8-bit per channel and the table 4-bit.*e8h8"),
        ("w4a16e16h8", r"the head is to be 8-bit per channel and the table float"),
        (QuantConfig(head=Grid(8)), "the table float"),
        (replace(QuantConfig.parse("w4a16e8"), rules=(("lm_head", None),)), "tied to lm_head, which stays in floats"),
        (replace(QuantConfig.parse("w4a16h8"), rules=(("*.wte", None),)), r"tied to transformer\.wte, which stays"),
        (replace(QuantConfig.parse("w4a16h8"), rules=(("*.wte", QuantConfig.parse("w4a16e4")),)), "the table 4-bit"),
        (replace(QuantConfig.parse("w4a16"), rules=(("*c_fc", QuantConfig.parse("w4a16h8")),)), "the rule .*no layer"),
        (replace(QuantConfig.parse("w4a16h8"), rules=(("lm_head", None),)), "tied to lm_head, which stays in floats"),
    ],
)
def test_what_a_tie_cannot_do_is_refused(config: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make_plan(made("GPT2LMHeadModel", T.GPT2Config(**GPT2)), QuantConfig.given(config))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("BertModel", T.BertConfig(**BERT)),
        ("BertForSequenceClassification", T.BertConfig(**BERT)),
        ("ViTForImageClassification", T.ViTConfig(**VIT)),
    ],
)
def test_bits_for_what_a_model_does_not_have_are_refused(name: str, config: Any) -> None:
    model = made(name, config)
    with pytest.raises(ValueError, match=r"grid for the head .* transformers knows no head of this model"):
        make_plan(model, QuantConfig.parse("w4a16h8"))
    if "ViT" in name:
        with pytest.raises(ValueError, match=r"grid for the token table .* knows no token table"):
            make_plan(model, QuantConfig.parse("w4a16e8"))


def test_a_plain_module_has_no_ends() -> None:
    model = nn.Sequential(nn.Embedding(8, 8), nn.Linear(8, 8))
    for text in ("w4a16e8", "w4a16h8"):
        with pytest.raises(ValueError, match="no layer takes it"):
            make_plan(model, QuantConfig.parse(text))
    assert list(make_plan(model, QuantConfig.parse("w4a16")).chosen) == ["1"]


def test_rules_speak_for_ends_as_for_other_layers(tmp_path: Path) -> None:
    rules = (("lm_head", QuantConfig.parse("w2a16h3")), ("*embed_tokens", QuantConfig.parse("w2a8e4")))
    student = quantize_model(made("LlamaForCausalLM", UNTIED), replace(QuantConfig.parse("w4a16"), rules=rules))
    told = coverage(student)
    assert told["lm_head"].startswith("weights 3-bit") and told["model.embed_tokens"] == "weights 4-bit per channel"
    zsaq.save(student, tmp_path / "x")
    assert coverage(zsaq.load(tmp_path / "x")) == told


def test_files_that_are_older_than_a_key_mean_what_they_meant() -> None:
    config = replace(QuantConfig.parse("w4a8"), rules=(("x", QuantConfig.parse("w8a8")),))
    data = config.to_dict()
    for each in (data, data["rules"][0][1]):
        del each["head"], each["spare_tied"]
    assert QuantConfig.from_saved(json.loads(json.dumps(data))) == config
    plan = make_plan(made("GPT2LMHeadModel", T.GPT2Config(**GPT2)), QuantConfig.parse("w4a8"))
    old = plan.to_dict()
    del old["headed"], old["config"]["head"], old["config"]["spare_tied"]
    assert Plan.from_dict(old) == plan
    del old["config"]["weight"]["bits"]
    with pytest.raises(ValueError, match=r"has no weight\.bits"):
        Plan.from_dict(old)


@pytest.mark.parametrize("headed", ["lm_head", ["lm_head"], [3], None, ["no"], [[]], [{}]])
def test_a_hostile_plan_is_refused(headed: Any) -> None:
    plan = make_plan(made("GPT2LMHeadModel", T.GPT2Config(**GPT2)), QuantConfig.parse("w4a8h8"))
    assert plan.headed == ("transformer.wte",)
    with pytest.raises(ValueError, match="headed is"):
        Plan.from_dict(plan.to_dict() | {"headed": headed})
    with pytest.raises(ValueError, match="no grid for the head"):
        Plan.from_dict(plan.to_dict() | {"config": QuantConfig.parse("w4a8").to_dict()})
