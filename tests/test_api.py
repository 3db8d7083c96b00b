"""`zsaq.quantize`: every kind of model by every way to give it, on toys; and what it answers truthfully."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import zsaq
from language_toys import REAL, bert, bpe, opt, wordpiece
from teachers import FEW_IMAGES, folder_of, llama, objects, processor
from vision_toys import images, resnet, vit
from zsaq import Grid, QuantConfig
from zsaq.io.teacher import load_teacher
from zsaq.quant.layers import QuantLayer


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of each kind beside its tokenizer or image processor: llama, opt, bert, resnet."""
    root = tmp_path_factory.mktemp("models")
    folder_of(root / "llama", llama(), bpe())
    folder_of(root / "opt", opt(bpe()), bpe())
    folder_of(root / "bert", bert(wordpiece()), wordpiece())
    folder_of(root / "resnet", resnet(), processor())
    return root


def state(model: nn.Module) -> list[tuple[str, torch.Tensor, torch.dtype, bool]]:
    return [(name, value.clone(), value.dtype, value.requires_grad) for name, value in model.named_parameters()]


def same(before: list[Any], after: list[Any]) -> bool:
    return all(a[0] == b[0] and torch.equal(a[1], b[1]) and a[2:] == b[2:] for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_weights_of_a_language_model_alone(folders: Path, name: str) -> None:
    student = zsaq.quantize(str(folders / name), "w4a16g16", method="gptq", calibration=2, seed=1)
    results = student.zsaq.results
    assert (
        results.config.weight == Grid(4, per=16)
        and results.config.input is None
        and results.inputs == "text of a generator"
    )
    assert results.method == "gptq" and results.zero_shot and results.model == name
    assert results.budget == {"effort": "default", "calibration": 2} and results.seed == 1
    assert any(isinstance(module, QuantLayer) for module in student.modules())


@pytest.mark.parametrize("generator", ["objects", "path", "Path"])
def test_zsaq_on_a_classifier_with_a_generator(folders: Path, generator: str) -> None:
    given: Any = {"objects": (opt(bpe()), bpe()), "path": str(folders / "opt"), "Path": folders / "opt"}[generator]
    student = zsaq.quantize(
        bert(wordpiece()), "w2a8", method="zsaq-paper", tokenizer=wordpiece(), generator=given, steps=3, ratio=(1, 1)
    )
    assert student.zsaq.results.budget["steps"] == 3 and student.zsaq.results.method == "zsaq-paper"
    assert student.zsaq.results.model == "a BertForSequenceClassification"


def test_genie_on_a_resnet_with_its_processor(tmp_path: Path) -> None:
    student = zsaq.quantize(resnet(), "w4a4", method="genie", processor=processor(), **FEW_IMAGES)
    results = student.zsaq.results
    assert results.preset == "brecq" and results.inputs == "images synthesized from the teacher (genie)"
    student.save_pretrained(tmp_path / "out")
    assert (tmp_path / "out" / "preprocessor_config.json").is_file()


def test_ones_own_batches_are_called_zero_shot_only_if_one_says_so() -> None:
    tokenizer = wordpiece()
    batches = [tokenizer(REAL[:4], padding=True, return_tensors="pt").data]
    said = {None: False, True: True, False: False}
    for zero_shot, expected in said.items():
        student = zsaq.quantize(
            bert(tokenizer), "w4a8", method="distill", batches=batches, steps=2, zero_shot=zero_shot
        )
        assert student.zsaq.results.zero_shot is expected
    given = [{"pixel_values": images(4)}]
    student = zsaq.quantize(resnet(), "w4a4", method="distill", spec=16, batches=given, steps=2, calibration=1)
    assert student.zsaq.results.zero_shot is False and student.zsaq.results.inputs == "given batches"
    for real in (True, "yes"):
        with pytest.raises(ValueError, match="gptq-real says itself what it reads"):
            zsaq.quantize(opt(bpe()), "w4a8", method="gptq-real", tokenizer=bpe(), real=lambda: REAL, zero_shot=real)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("name", "config", "method", "few"),
    [
        ("llama", "w4a8", "gptq-qat", {"steps": 2, "calibration": 1}),
        ("opt", "w4a16", "gptq", {"calibration": 1}),
        ("opt", "w2a8", "llm-qat", {"steps": 2}),
        ("bert", "w8a8", "rtn", {}),
        ("bert", QuantConfig(Grid(8), Grid(8, per="token")), "rtn", {}),
        ("resnet", "w8a8", "onepass", {"images": 4, "image_steps": 2}),
        ("resnet", "w4a4", "onepass", {"images": 4, "image_steps": 2}),
    ],
)
@pytest.mark.parametrize("given", ["path", "object"])
def test_auto_follows_the_documented_rule(
    folders: Path, name: str, config: Any, method: str, few: dict[str, Any], given: str
) -> None:
    model, reader = objects(name)
    key = "processor" if name == "resnet" else "tokenizer"
    options: dict[str, Any] = {key: reader} if given == "object" else {}
    student = zsaq.quantize(model if given == "object" else folders / name, config, **(options | few))
    assert student.zsaq.results.method == method


def test_a_vision_transformer_by_auto() -> None:
    student = zsaq.quantize(vit(), "w8a8", images=2, image_steps=2)
    assert student.zsaq.results.method == "psaq" and student.zsaq.results.preset == "psaq"


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["opt", "resnet"])
def test_the_teacher_stays_as_it_is(tmp_path: Path, name: str, training: bool) -> None:
    teacher, reader = objects(name)
    teacher.train(training)
    next(teacher.parameters()).requires_grad_(False)
    buffers = {key: value.clone() for key, value in teacher.named_buffers()}
    before = state(teacher)
    if name == "opt":
        student = zsaq.quantize(teacher, "w2a8", method="zsaq-paper", tokenizer=reader, steps=2, ratio=(1, 1))
    else:
        student = zsaq.quantize(teacher, "w4a4", processor=reader, images=4, image_steps=2)
    assert same(before, state(teacher)) and student is not teacher
    assert all(torch.equal(value, buffers[key]) for key, value in teacher.named_buffers())
    assert all(module.training is training for module in teacher.modules())
    assert "zsaq" not in vars(teacher) and "save_pretrained" not in vars(teacher)
    teacher.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())


def test_a_generator_that_was_given_stays_as_it_is() -> None:
    writer = opt(bpe()).train()
    before = state(writer)
    zsaq.quantize(
        bert(wordpiece()), "w4a8", method="llm-qat", tokenizer=wordpiece(), generator=(writer, bpe()), steps=1
    )
    assert same(before, state(writer)) and all(module.training for module in writer.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_teacher_in_half_precision_is_widened_for_learning_alone(tmp_path: Path, dtype: torch.dtype) -> None:
    folder_of(tmp_path, llama().to(dtype), bpe())
    teacher = load_teacher(tmp_path)
    before = state(teacher)
    student = zsaq.quantize(teacher, "w4a16", method="gptq", tokenizer=bpe(), calibration=1)
    assert same(before, state(teacher)) and student.dtype == torch.float32
    assert zsaq.quantize(teacher, "w4a16", method="rtn").dtype == dtype
    again = zsaq.quantize(tmp_path, "w4a16", method="gptq", calibration=1)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), again.parameters(), strict=True))


def test_baselines_of_a_method_that_learns_are_made_from_the_same_numbers() -> None:
    student = zsaq.quantize(
        llama().to(torch.bfloat16), "w4a16", method="gptq", tokenizer=bpe(), calibration=1, baselines=("rtn", "gptq"),
        score=lambda model: {"float32": float(next(model.parameters()).dtype == torch.float32)},
    )  # fmt: skip
    assert [(row.name, row.scores["float32"]) for row in student.zsaq.results.rows] == [
        ("teacher", 1.0), ("rtn", 1.0), ("gptq", 1.0)
    ]  # fmt: skip
    assert student.zsaq.results.teacher.bytes < 2 * sum(p.numel() for p in llama().parameters()) * 1.2
