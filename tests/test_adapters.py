"""Adapters and codes: peft and transformers' Trainer on loaded models, and teachers that still carry adapters."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, TaskType, get_peft_model
from torch import nn

import zsaq
from in_trainer import assert_equal, tensors, trainer
from students import CONFIGS, TEACHERS, bits, one_thread, student_of
from zsaq.quant.config import Grid, QuantConfig
from zsaq.quant.model import quantize_model

__all__ = ["one_thread"]
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's
FLOAT_TABLE = QuantConfig(weight=Grid(4), input=Grid(8, per="token"))  # peft looks for the table's parameter
ADAPTERS = {
    "lora": lambda: LoraConfig(target_modules=["query", "dense", "word_embeddings"], init_lora_weights=False),
    "lora of a head": lambda: LoraConfig(target_modules=["value"], modules_to_save=["classifier"]),
    "ia3": lambda: IA3Config(target_modules=["key"], feedforward_modules=[]),
    "prompt": lambda: PromptTuningConfig(num_virtual_tokens=2, task_type=TaskType.SEQ_CLS),
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapters_learn_beside_the_codes(kind: str, tmp_path: Path) -> None:
    zsaq.save(student_of("bert", FLOAT_TABLE if kind == "prompt" else CONFIGS["w4a8g16"]), tmp_path / "base")
    model = get_peft_model(zsaq.load(tmp_path / "base"), ADAPTERS[kind]())
    codes = {key: value for key, value in tensors(model).items() if key.endswith((".codes", ".scale"))}
    run = trainer(model, "bert", tmp_path / "run")
    before = bits(model.eval())
    run.train()
    after = bits(model.eval())
    assert codes and not torch.equal(before, after)
    assert_equal(codes, {key: value for key, value in tensors(model).items() if key in codes})
    run.save_model(str(tmp_path / "adapter"))
    again = PeftModel.from_pretrained(zsaq.load(tmp_path / "base"), str(tmp_path / "adapter")).eval()
    assert torch.equal(bits(again), after)
    resumed = get_peft_model(zsaq.load(tmp_path / "base"), ADAPTERS[kind]())
    trainer(resumed, "bert", tmp_path / "run").train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-2"))
    assert torch.equal(bits(resumed.eval()), after)


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
def test_adapters_of_transformers_come_back_beside_the_codes(family: str, tmp_path: Path) -> None:
    zsaq.save(student_of(family, CONFIGS["w4a8g16"]), tmp_path / "base")
    model = zsaq.load(tmp_path / "base")
    layers = ["c_attn"] if family == "gpt2" else ["q_proj"]
    model.add_adapter(LoraConfig(target_modules=layers, fan_in_fan_out=family == "gpt2", init_lora_weights=False))
    trainer(model, family, tmp_path / "run").train()
    model.save_pretrained(str(tmp_path / "adapter"))
    again = zsaq.load(tmp_path / "base")
    again.load_adapter(str(tmp_path / "adapter"))
    assert torch.equal(bits(again), bits(model.eval()))
    with pytest.raises(ValueError, match=r"carries adapters.*save them alone"):
        zsaq.save(model, tmp_path / "whole")


def test_a_packed_model_alone_is_not_trained(tmp_path: Path) -> None:
    zsaq.save(student_of("bert", CONFIGS["w4a8g16"]), tmp_path / "base")
    with pytest.raises(ValueError, match="attach trainable adapters"):
        trainer(zsaq.load(tmp_path / "base"), "bert", tmp_path)


def injected(teacher: Any) -> nn.Module:
    teacher.add_adapter(LoraConfig(target_modules=["query"]))
    return teacher


CARRYING = {
    **{kind: lambda teacher, kind=kind: get_peft_model(teacher, ADAPTERS[kind]()) for kind in ADAPTERS},
    "of transformers": injected,
    "inside a wrapper": lambda teacher: nn.DataParallel(injected(teacher)).module,
}


@pytest.mark.parametrize("kind", CARRYING)
def test_a_teacher_with_adapters_is_refused_before_anything_is_spent(kind: str) -> None:
    teacher = CARRYING[kind](TEACHERS["bert"]())
    with pytest.raises(ValueError, match=r"carries adapters.*merge first.*merge_and_unload"):
        quantize_model(teacher, "w4a8")
    with pytest.raises(ValueError, match=r"carries adapters.*merge first.*merge_and_unload"):
        zsaq.quantize(teacher, "w4a8", method=lambda *args: pytest.fail("a step was taken"))


def test_a_merged_teacher_is_quantized_with_what_was_merged(tmp_path: Path) -> None:
    base = TEACHERS["bert"]().eval()
    before = bits(base)
    merged: Any = get_peft_model(base, ADAPTERS["lora"]()).merge_and_unload()
    assert not torch.equal(bits(merged), before)
    student = quantize_model(merged, "w8a8")
    assert torch.equal(bits(zsaq.load(zsaq.save(student, tmp_path / "model"))), bits(student))
