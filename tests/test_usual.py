"""A model of which nothing is said but its name: which bits, method and counts it gets, and what is told."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    ViTConfig,
    ViTModel,
)

import toys
import zsaq
from commands import run, told
from language_toys import bert, bpe, opt, wordpiece
from teachers import FEW_IMAGES, folder_of, objects, processor
from zsaq.language.defaults import CALIBRATION, usual_bits
from zsaq.language.job import TextJob
from zsaq.language.nearness import POOR, Nearness, nearness, remedy
from zsaq.quant.config import Grid, QuantConfig
from zsaq.quant.model import quantize_model
from zsaq.run import Results
from zsaq_cli.given import with_ends

FEW: Any = {"light": {}, "default": {"calibration": 1}, "best": {"calibration": 1, "steps": 1}}


@pytest.mark.parametrize(("effort", "method"), [("light", "rtn"), ("default", "gptq"), ("best", "gptq-qat")])
def test_a_causal_model_alone(effort: Any, method: str, capsys: pytest.CaptureFixture[str]) -> None:
    student = zsaq.quantize(opt(bpe()), effort=effort, tokenizer=bpe(), **FEW[effort])
    results, said = student.zsaq.results, capsys.readouterr().err
    config = dataclasses.replace(results.config, ranges="searched")
    assert results.method == method and config == QuantConfig.parse("w4a16e8h8g32-s16")
    what = "w4a16e8h8g32-s16, weights of 4 bits, groups of 32, scales of float16, table and head of 8"
    assert f"no bits were given: {what}" in said
    assert (method == "rtn") != ("GB of memory (estimates)" in said)
    own = results.own_text
    assert 0 < own["agreement"] <= 1 and own["kl"] >= 0 and own["tokens"] > 50
    assert f"agreement with the teacher {own['agreement']:.1%}" in said
    assert said.index("effort") < said.index("agreement with the teacher")


@pytest.mark.parametrize("effort", ["light", "default", "best"])
def test_counts_of_a_method_that_was_not_named(effort: Any) -> None:
    tokenizer = bpe()
    tokenizer.model_max_length = 8
    options: Any = {"steps": 1} if effort == "best" else {}
    student = zsaq.quantize(opt(tokenizer), "w4a16", effort=effort, tokenizer=tokenizer, **options)
    expected = {"light": None, "default": CALIBRATION["default"], "best": 384}[effort]
    assert student.zsaq.results.budget.get("calibration") == expected


@pytest.mark.parametrize("name", ["bert", "resnet"])
def test_other_models_alone(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    model, reader = objects(name)
    if name == "bert":
        student = zsaq.quantize(model, method="rtn", tokenizer=reader)
        assert student.zsaq.results.config == QuantConfig.parse("w4a8")
    else:
        student = zsaq.quantize(model, method="genie", processor=processor(), **FEW_IMAGES)
    assert "no bits were given: w4a8" in capsys.readouterr().err and student.zsaq.results.own_text == {}


def test_a_vision_encoder_without_a_head_takes_weights_alone(capsys: pytest.CaptureFixture[str]) -> None:
    small: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    images: dict[str, Any] = {"image_size": 16, "patch_size": 8}
    for model in (ViTModel(ViTConfig(**small, **images)), CLIPVisionModel(CLIPVisionConfig(**small, **images))):
        results = zsaq.quantize(model).zsaq.results
        assert results.method == "rtn" and results.config == QuantConfig.parse("w4a16")
        assert "w4a16, weights of 4 bits, inputs in floats, as it is no classifier" in capsys.readouterr().err
        with pytest.raises(ValueError, match=r"a classifier of images .* without a head .* weights alone, 'w4a16'$"):
            zsaq.quantize(model, "w4a8")
        static = QuantConfig(Grid(4), Grid(8, per="tensor", symmetric=False))
        with pytest.raises(ValueError, match=r"it reads pixel_values: give weights alone, 'w4a16'$"):
            zsaq.quantize(model, static)


@pytest.mark.parametrize(
    ("width", "bits"),
    [(32, "w4a16e8h8g32-s16"), (48, "w4a16e8h8g16-s16"), (40, "w4a16e8h8g8-s16"), (36, "w4a16e8h8-s16")],
)
def test_groups_that_every_layer_can_have(width: int, bits: str) -> None:
    config = LlamaConfig(
        vocab_size=99, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlamaForCausalLM(config)
    text, meaning = usual_bits(model, "causal")
    assert text == bits and ("does not divide" in meaning) == (width != 32)
    quantize_model(model, QuantConfig.parse(text))


def test_a_student_in_16_bits_is_compared_in_32_and_is_as_it_was() -> None:
    tokenizer = bpe()
    teacher = opt(tokenizer).half()
    student = quantize_model(teacher, QuantConfig.parse("w8a16"))
    before = [{name: value.clone() for name, value in model.state_dict().items()} for model in (teacher, student)]
    near = nearness(TextJob.of(teacher, tokenizer), student, 0)
    assert near is not None and near.agreement > 0.9 and near.kl < 0.01
    for model, state in zip((teacher, student), before, strict=True):
        assert all(torch.equal(value, state[name]) and value.dtype == state[name].dtype
                   for name, value in model.state_dict().items())  # fmt: skip


def test_no_data_is_read_and_no_stream_of_the_run() -> None:
    tokenizer = bpe()
    job = TextJob.of(opt(tokenizer), tokenizer, real=lambda: pytest.fail("real data was read"))
    job.corpus = ["the film is good"] * 4
    student = quantize_model(job.start, QuantConfig.parse("w4a16"))
    again = [nearness(job, student, seed) for seed in (0, 0, 1)]
    assert again[0] == again[1] != again[2] and job.corpus is not None
    assert nearness(TextJob.of(opt(tokenizer)), student, 0) is None
    assert nearness(TextJob.of(bert(wordpiece()), wordpiece()), student, 0) is None
    assert nearness(job, torch.nn.Linear(2, 2), 0) is None


@pytest.mark.parametrize(
    ("bits", "said"),
    [
        ("w4a8", "groups of 32 (w4a16g32)"), ("w2a16g64", "groups of 32 (w3a16g32)"), ("w3a16g32", "4 bits (w4a16g32)"),
        ("w4a8b32", "w4a16g32"), ("w4a16g32", "effort='best'"),
    ],
)  # fmt: skip
def test_what_would_bring_a_student_nearer(bits: str, said: str) -> None:
    config, far = QuantConfig.parse(bits), Nearness(1.2, POOR - 0.1, 100)
    advice = remedy(config, far)
    assert advice is not None and said in advice and f"{far.agreement:.0%}" in advice
    assert remedy(config, Nearness(0.1, POOR, 100)) is None


def test_results_without_own_text_are_read() -> None:
    student = zsaq.quantize(opt(bpe()), "w8a16", tokenizer=bpe())
    data = json.loads(json.dumps(student.zsaq.results.to_dict()))
    assert Results.from_dict(data).own_text == student.zsaq.results.own_text
    del data["own_text"]
    assert Results.from_dict(data).own_text == {}


def test_the_command_with_nothing_but_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path / "toy", opt(bpe()), bpe())
    monkeypatch.chdir(tmp_path)
    facts = told("quantize", "toy", "--effort", "light")
    assert facts["folder"] == "toy-student" and (tmp_path / "toy-student" / "config.json").is_file()
    assert facts["own_text"]["tokens"] > 0 and facts["config"]["head"]["bits"] == 8
    again = run("quantize", "toy", "--effort", "light")
    assert again.exit_code == 2 and "toy-student is there already" in again.stderr
    assert not (tmp_path / "toy-w8a16").exists()
    assert run("quantize", "./toy/", "--bits", "w8a16", "--embedding", "8", "--head", "8").exit_code == 0
    assert (tmp_path / "toy-w8a16" / "config.json").is_file()


def test_bits_of_table_and_head_beside_the_layers() -> None:
    config = with_ends("w4a16g32", 8, 4)
    assert config.embedding == zsaq.Grid(8) and config.head == zsaq.Grid(4)
    assert with_ends("w4a16", None, None) == "w4a16"
    with pytest.raises(ValueError, match="--head 8: table and head go with --bits"):
        with_ends(None, None, 8)
    for text in ("w4a16e8h4g32", "w4a16e4h8g32-s16"):
        config = zsaq.QuantConfig.parse(text)
        assert config.embedding and config.head
        assert with_ends(text, config.embedding.bits, config.head.bits) == config
    assert with_ends("w4a16g32-s16", 8, 8) == zsaq.QuantConfig.parse("w4a16e8h8g32-s16")


@pytest.mark.parametrize(
    ("bits", "ends", "megabytes", "said"),
    [
        ("3.2", (None, 8), None, r"--head 8: --bits 3.2 is a size.* leave them off"),
        ("100MBa8", (4, None), None, r"--embedding 4: --bits 100MBa8 is a size"),
        ("3.2", (4, 8), None, r"--embedding 4 and --head 8: --bits 3.2 is a size"),
        (None, (None, 8), 60.0, r"--head 8: --target_mb 60 is a size"),
        ("w4a16h4", (None, 8), None, r"--head 8: --bits w4a16h4 says 4 bits for it"),
        ("w4a16e16", (8, None), None, r"--embedding 8: --bits w4a16e16 says 16 bits for it"),
    ],
)
def test_ends_that_cannot_be_are_told_with_what_they_conflict(
    bits: str | None, ends: tuple[int | None, int | None], megabytes: float | None, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        with_ends(bits, *ends, megabytes)


def test_what_is_only_told_stops_no_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither the estimate of the cost, which a run without a tokenizer has none of, nor the closing line."""

    def broken(*_: object) -> None:
        raise AttributeError("past_key_values")

    monkeypatch.setattr("zsaq.closing.nearness", broken)
    student: Any = zsaq.quantize(toys.llama(), "w4a8", method="distill", batches=toys.batches(2), steps=1)
    assert student.zsaq.results.own_text == {}
    assert "How near the student came could not be measured" in capsys.readouterr().err

    def own(job: Any, config: Any, *_: Any) -> Any:
        return quantize_model(job.start, config)

    other: Any = zsaq.quantize(toys.llama(), "w4a8", method=own, steps=[1])
    assert other.zsaq.results.budget["steps"] == [1]


def test_experts_that_are_fused_have_usual_bits() -> None:
    config = MixtralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=2,
    )  # fmt: skip
    assert usual_bits(MixtralForCausalLM(config), "causal")[0] == "w4a16e8h8g16-s16"
