"""Static inputs of language models, by their text (`w2a8s`): where ranges come from, what says so, what comes back."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForTokenClassification, ResNetConfig, ResNetForImageClassification

import zsaq
from language_toys import bert, job_of, wordpiece
from zsaq import Grid, load
from zsaq.quant.layers import quant_layers
from zsaq.quant.ranges import static_ranges
from zsaq.streaming import quantize_files

TEXTS = ["the film is very good", "the story was bad", "this actor plays well"] * 12


def quantized(text: str, kind: str = "bert", **options: Any) -> Any:
    job = job_of(kind)
    words = {"corpus": TEXTS, "zero_shot": None} if options.get("method") not in ("rtn", "rtn-minmax") else {}
    return zsaq.quantize(job.teacher, text, tokenizer=job.words, **words, **options)


@pytest.mark.parametrize("kind", ["bert", "opt"])
@pytest.mark.parametrize(
    "options, inputs",
    [
        ({"method": "rtn"}, "random tokens"),
        ({"method": "rtn-minmax"}, "random tokens"),
        ({"method": "random-qat", "steps": 1}, "random tokens"),
        ({"method": "gptq", "calibration": 1}, "text of a generator"),
        ({"method": "llm-qat", "steps": 1}, "text of a generator"),
    ],
)
def test_a_student_tells_where_its_ranges_come_from_and_comes_back(
    kind: str, options: dict[str, Any], inputs: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = quantized("w4a8se8", kind, **options)
    layers: list[Any] = [
        layer for _, layer in quant_layers(student) if getattr(layer, "input_quantizer", None) is not None
    ]
    assert len(static_ranges(student)) == len(layers) > 4
    assert all(layer.input_quantizer.grid == Grid(8, per="tensor") for layer in layers)
    assert student.zsaq.results.inputs == inputs
    assert f"static ranges of inputs from 16 batches of {inputs}" in capsys.readouterr().err
    student.save_pretrained(tmp_path / "student")
    ids = next(job_of(kind).noise(3))
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "student")(**ids).logits, student(**ids).logits)


def test_rounding_reads_nothing_where_inputs_have_a_scale_a_token() -> None:
    job = job_of("bert")
    student = zsaq.quantize(job.teacher, "w4a8", tokenizer=job.words, method="rtn")
    assert student.zsaq.results.inputs == "none" and student.zsaq.results.zero_shot


def test_random_tokens_are_no_data_and_the_same_seed_gives_the_same_ranges() -> None:
    scales = []
    for seed in (1, 1, 2):
        student = quantized("w8a8s", method="rtn", seed=seed)
        assert student.zsaq.results.zero_shot and student.zsaq.results.knowledge == ()
        scales.append(torch.cat([each.scale.flatten() for each in static_ranges(student)]))
    assert torch.equal(scales[0], scales[1]) and not torch.equal(scales[0], scales[2])


def test_a_head_of_another_kind_is_calibrated_too() -> None:
    """Rounding is what such a model has, and "auto" takes it."""
    tokenizer = wordpiece()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=32,
    )  # fmt: skip
    student = zsaq.quantize(BertForTokenClassification(config).eval(), "w4a8s", tokenizer=tokenizer)
    assert student.zsaq.results.method == "rtn" and student.zsaq.results.inputs == "random tokens"
    for each in static_ranges(student):
        each.check()


def test_without_a_tokenizer_the_remedy_is_told() -> None:
    with pytest.raises(ValueError, match="needs its tokenizer"):
        zsaq.quantize(bert(wordpiece()), "w4a8s", method="rtn")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_teacher_in_half_precision_is_calibrated_in_full_and_stays(dtype: torch.dtype) -> None:
    job = job_of("bert")
    teacher: Any = job.teacher
    wide = zsaq.quantize(teacher.to(dtype).float(), "w8a8s", tokenizer=job.words, method="rtn")
    narrow = zsaq.quantize(teacher.to(dtype), "w8a8s", tokenizer=job.words, method="rtn")
    assert {p.dtype for n, p in narrow.named_parameters() if "quantizer" not in n} == {dtype}
    for ours, theirs in zip(static_ranges(narrow), static_ranges(wide), strict=True):
        assert ours.scale.dtype == torch.float32 and torch.allclose(ours.scale, theirs.scale, rtol=0.01)


def test_bits_by_size_take_static_inputs() -> None:
    job = job_of("opt")
    student = zsaq.quantize(job.teacher, "11a8sg8", tokenizer=job.words, method="rtn")
    assert student.zsaq.results.inputs == "random tokens" and static_ranges(student)


def test_what_cannot_calibrate_refuses_before_anything_is_written(tmp_path: Path) -> None:
    job = job_of("opt")
    job.teacher.save_pretrained(tmp_path / "opt")
    job.words.save_pretrained(tmp_path / "opt")
    for method in ("rtn", "gptq", "auto"):
        with pytest.raises(ValueError, match=r"static ranges .* as in w4a8 \(no s\), or .*zsaq\.quantize"):
            quantize_files(tmp_path / "opt", tmp_path / "out", "w4a8s", method=method, batches=[])
    with pytest.raises(ValueError, match="static ranges"):
        zsaq.ZsaqConfig("w4a8s")
    with pytest.raises(ValueError, match="no text of a preset"):
        zsaq.quantize(resnet(), "w4a4s", spec=32)
    assert not (tmp_path / "out").exists()


def resnet() -> Any:
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    return ResNetForImageClassification(config).eval()
