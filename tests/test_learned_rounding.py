"""Learned rounding of language models: in memory, and block by block from files, to the bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zsaq
from language_toys import bpe, fit, job_of
from language_toys import opt as writer
from teachers import folder_of
from test_chain import gemma
from toys import batches, bert, gpt2, llama
from zsaq import Loop, QuantConfig
from zsaq.language.fits import reconstructed
from zsaq.language.job import TextJob
from zsaq.language.methods import METHODS
from zsaq.language.models import blocks
from zsaq.language.sam_sga import gptq_student
from zsaq.method import Budget
from zsaq.quant.layers import quant_layers
from zsaq.quant.model import quantize_model
from zsaq.stream.weights import Weights
from zsaq.train.calls import even
from zsaq.train.optim import NotFinite
from zsaq.train.pair import run_model
from zsaq.train.reconstruction import reconstruct
from zsaq.train.widening import keep_narrow

FEW: dict[str, Any] = {"calibration": 2, "steps": 3, "batch_size": 4}
GRIDS = ("w4a16g8", "w4a16g8-s16", "w3a8", "w4a8b8", "w2a16g16", "w4a16e8h8g8-s16")


def budget(**more: Any) -> Budget:
    return Budget.of(METHODS["reconstruct"], "light", FEW | more)


def learn(given: list[dict[str, Tensor]]) -> Any:
    return reconstructed(lambda job, seed: iter(given))


def error(student: nn.Module, teacher: nn.Module, batch: dict[str, Tensor]) -> float:
    """Of the last hidden states."""
    states = []
    for model in (teacher, student):
        with torch.no_grad():
            states.append(model(**batch, output_hidden_states=True).hidden_states[-1])
    return float((states[1] - states[0]).square().mean())


@pytest.mark.parametrize("text", GRIDS)
def test_blocks_answer_more_as_the_teachers_than_after_gptq(text: str) -> None:
    torch.manual_seed(0)
    teacher, config, given = llama(), QuantConfig.parse(text), batches(3)
    before = gptq_student(teacher, config, given)
    job = TextJob.of(teacher)
    student = learn(given)(job, config, budget(steps=30, batch_size=8, calibration=3), 0, Loop())
    assert error(student, teacher, given[0]) < 0.9 * error(before, teacher, given[0])
    for _, layer in quant_layers(student):
        grid = layer.weight_quantizer.grid
        scale = layer.weight_quantizer.codes(layer.rows().flatten(1))[1]
        assert grid.scales != "float16" or torch.equal(scale.half().float(), scale)
    assert all(parameter.grad is None for parameter in student.parameters())


@pytest.mark.parametrize("text", ["w4a16g8", "w3a8", "w4a16e8h8g8-s16"])
def test_blocks_that_learning_takes_away_fall_back_on_gptq(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    teacher, config, given = llama(), QuantConfig.parse(text), batches(3)
    before = gptq_student(teacher, config, given)
    student = learn(given)(TextJob.of(teacher), config, budget(lr=30.0, batch_size=8, calibration=3), 0, Loop())
    assert capsys.readouterr().err.count("so it is rounded as it began") == len(blocks(teacher))
    state = before.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in student.state_dict().items())


@pytest.mark.parametrize("make", [llama, gpt2, gemma])
@pytest.mark.parametrize("text", ["w4a16g8-s16", "w3a8", "w4a8b8"])
def test_files_give_the_student_of_memory(make: Callable[[], Any], text: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make().half().save_pretrained(tmp_path / "teacher", max_shard_size="20KB")
    bpe().save_pretrained(tmp_path / "teacher")
    given = batches(2, pad=True)
    given[1] |= {"attention_mask": torch.ones_like(given[1]["attention_mask"])}
    teacher = type(make()).from_pretrained(tmp_path / "teacher", dtype="auto")
    keep_narrow(teacher)
    job = TextJob.of(teacher)
    student = learn(given)(job, QuantConfig.parse(text), budget(), 5, Loop())
    student.save_pretrained(tmp_path / "memory")
    results = zsaq.quantize_files(
        tmp_path / "teacher", tmp_path / "files", text, method="reconstruct", batches=given, seed=5, **FEW
    )
    here, there = (Weights(tmp_path / name) for name in ("memory", "files"))
    assert here.header == there.header
    assert [name for name in here.header if not torch.equal(here.tensor(name), there.tensor(name))] == []
    assert results.method == "reconstruct" and results.budget["steps"] == 3


def test_its_own_text_in_memory_and_from_files(tmp_path: Path) -> None:
    folder_of(tmp_path / "teacher", writer(bpe()), bpe())
    student = zsaq.quantize(tmp_path / "teacher", "w4a16g8", method="reconstruct", **FEW)
    results = zsaq.quantize_files(tmp_path / "teacher", tmp_path / "files", "w4a16g8", method="reconstruct", **FEW)
    assert results.zero_shot and results.own_text["agreement"] > 0.2 and student.zsaq.results.zero_shot
    x, again = batches(1)[0]["input_ids"], zsaq.load(tmp_path / "files")
    assert torch.equal(again(input_ids=x).logits, student(input_ids=x).logits)


def padded(token: int) -> list[dict[str, Tensor]]:
    given = batches(2, pad=True)
    for batch in given:
        batch["input_ids"][batch["attention_mask"] == 0] = token
    return given


def test_padding_does_not_count() -> None:
    torch.manual_seed(0)
    teacher, config = llama(), QuantConfig.parse("w3a16g8")
    job, options = TextJob.of(teacher), {"steps": 6, "lr": 0.3}
    straight = [learn(padded(token))(job, config, budget(**options), 0, Loop()) for token in (5, 9)]
    soft = []
    for token in (5, 9):
        student = quantize_model(teacher, config)
        parts = blocks(student)
        soft.append(reconstruct(student, teacher, padded(token), parts, steps=4, batch_size=8, lr_bits=0.1))
    for pair in (straight, soft):
        assert all(torch.equal(a, b) for a, b in zip(*(s.parameters() for s in pair), strict=True))


def test_batches_of_several_lengths_become_even() -> None:
    long, short = batches(1, length=12)[0], batches(1, length=9)[0]
    made = even([long, short])
    assert {batch["input_ids"].shape[1] for batch in made} == {12}
    assert not any(batch["attention_mask"].all() for batch in made) and long["attention_mask"].all()
    assert int(made[0]["attention_mask"].sum()) == long["attention_mask"].numel() - 1
    assert all(batch["attention_mask"].all() for batch in even([long, {"input_ids": long["input_ids"]}]))
    teacher = llama()
    student = quantize_model(teacher, "w4a16g8")
    reconstruct(student, teacher, made, blocks(student), steps=1, batch_size=3)
    assert run_model(student, long).logits.isfinite().all()


def test_a_classifier_and_static_inputs_learn_too() -> None:
    job = job_of("bert")
    student = fit("reconstruct", job, QuantConfig.parse("w4a8s"), batch_size=3)
    assert run_model(student, next(job.noise(0))).logits.isfinite().all()
    assert not bert().training


@pytest.mark.parametrize("text", ["w4a16g8-nf4", "w4a16-mxfp4"])
def test_other_levels_learn_too(text: str) -> None:
    torch.manual_seed(0)
    teacher, given = llama(), batches(2)
    student = learn(given)(TextJob.of(teacher), QuantConfig.parse(text), budget(steps=20), 0, Loop())
    before = gptq_student(teacher, QuantConfig.parse(text), given)
    assert error(student, teacher, given[0]) < error(before, teacher, given[0])


def test_an_error_that_is_not_finite_is_told() -> None:
    teacher, given = llama(), batches(2)
    with pytest.raises(NotFinite, match="lower lr"):
        learn(given)(TextJob.of(teacher), QuantConfig.parse("w4a16g8"), budget(lr=1e38), 0, Loop())
