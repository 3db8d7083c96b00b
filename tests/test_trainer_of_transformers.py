"""transformers' Trainer and peft on what zsaq makes: a student goes on where it stopped, adapters learn beside codes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Trainer, TrainingArguments

import zsaq
from students import CONFIGS, TABLES, TEACHERS, VOCABULARY, bits, one_thread, student_of
from zsaq.quant.config import Grid, QuantConfig

__all__ = ["one_thread"]
TIED = QuantConfig(
    weight=Grid(4), input=Grid(8, per="token"), rules=((TABLES["gpt2"], QuantConfig(embedding=Grid(4, per=8))),)
)
CASES = {
    "searched": ("bert", CONFIGS["w2a8"]),
    "learned": ("bert", CONFIGS["learned"]),
    "static": ("bert", CONFIGS["static"]),
    "asymmetric": ("opt", CONFIGS["asymmetric"]),
    "conv1d": ("gpt2", CONFIGS["w4a8g16"]),
    "tied": ("gpt2", TIED),
}


class Rows(torch.utils.data.Dataset):
    """Ids, with a label for each row or for each token."""

    def __init__(self, family: str) -> None:
        self.ids = torch.arange(16 * 8).reshape(16, 8) * 7 % VOCABULARY
        self.labels = self.ids if family != "bert" else torch.arange(16) % 2

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[i], "labels": self.labels[i]}


def trainer(model: Any, family: str, folder: Path, **options: Any) -> Trainer:
    arguments = TrainingArguments(
        str(folder), max_steps=4, save_steps=2, per_device_train_batch_size=4, learning_rate=1e-3, use_cpu=True, report_to=[],
        disable_tqdm=True, lr_scheduler_type="constant", logging_strategy="no", dataloader_pin_memory=False, **options,
    )  # fmt: skip
    rows = Rows(family)
    return Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)


def tensors(model: torch.nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


@pytest.mark.parametrize("case", CASES)
def test_a_student_resumes_bit_for_bit(case: str, tmp_path: Path) -> None:
    family, config = CASES[case]
    torch.manual_seed(0)
    student = student_of(family, config)
    start = tensors(student)
    trainer(student, family, tmp_path).train()
    student.load_state_dict(start)
    other = trainer(student, family, tmp_path / "other")
    other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_equal(
        load_file(tmp_path / "checkpoint-4/model.safetensors"),
        load_file(tmp_path / "other/checkpoint-4/model.safetensors"),
    )
    assert torch.equal(bits(zsaq.load(tmp_path / "checkpoint-4")), bits(student.eval()))
    other.save_model(str(tmp_path / "final"))
    assert not [
        key
        for key in load_file(tmp_path / "final/model.safetensors")
        if "latent" in key or ("quantizer" in key and "weight_" in key)
    ]
    assert torch.equal(bits(zsaq.load(tmp_path / "final")), bits(student))


@pytest.mark.parametrize("case", ["searched", "tied"])
def test_the_best_student_comes_back(case: str, tmp_path: Path) -> None:
    """The loss is worst at the end, by what is maximised, so the best checkpoint is not the last."""
    family, config = CASES[case]
    student = zsaq.quantize(TEACHERS[family]().eval(), config, method="rtn")
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "greater_is_better": True}
    run = trainer(student, family, tmp_path, metric_for_best_model="eval_loss", **best)
    run.train()
    assert run.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    assert torch.equal(bits(student.eval()), bits(zsaq.load(tmp_path / "checkpoint-2")))


def test_codes_alone_are_not_trained_on(tmp_path: Path) -> None:
    student = student_of("bert", CONFIGS["w2a8"])
    zsaq.save(student, tmp_path / "model")
    with pytest.raises(ValueError, match=r"query: these are the codes of a saved model.*checkpoint-<step>"):
        student.load_state_dict(load_file(tmp_path / "model/model.safetensors"), strict=False)


@pytest.mark.parametrize(
    ("key", "value"), [("latent", torch.zeros(2)), ("weight_quantizer.ranges.scale", torch.zeros(32, 2))]
)
def test_a_checkpoint_that_fits_no_layer_is_refused(key: str, value: Tensor, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-7"
    student_of("bert", CONFIGS["w2a8"]).save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    assert state[name := f"bert.pooler.dense.{key}"].shape != value.shape
    save_file(state | {name: value}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=rf"pooler.dense: {name} is .*its plan asks for floats"):
        zsaq.load(folder)


ADAPTERS = {
    "lora": lambda: LoraConfig(target_modules=["query", "dense", "word_embeddings"], init_lora_weights=False),
    "lora of a head": lambda: LoraConfig(target_modules=["value"], modules_to_save=["classifier"]),
    "ia3": lambda: IA3Config(target_modules=["key"], feedforward_modules=[]),
    "prompt": lambda: PromptTuningConfig(num_virtual_tokens=2, task_type=TaskType.SEQ_CLS),
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapters_learn_beside_the_codes(kind: str, tmp_path: Path) -> None:
    zsaq.save(student_of("bert", CONFIGS["w4a8g16"]), tmp_path / "base")
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
    model.add_adapter(
        LoraConfig(target_modules=["c_attn"] if family == "gpt2" else ["q_proj"], init_lora_weights=False)
    )
    trainer(model, family, tmp_path / "run").train()
    model.save_pretrained(str(tmp_path / "adapter"))
    again = zsaq.load(tmp_path / "base")
    again.load_adapter(str(tmp_path / "adapter"))
    assert torch.equal(bits(again), bits(model.eval()))
    with pytest.raises(ValueError, match="carries adapters.*save them alone"):
        zsaq.save(model, tmp_path / "whole")


def test_a_packed_model_alone_is_not_trained(tmp_path: Path) -> None:
    zsaq.save(student_of("bert", CONFIGS["w4a8g16"]), tmp_path / "base")
    with pytest.raises(ValueError, match="attach trainable adapters"):
        trainer(zsaq.load(tmp_path / "base"), "bert", tmp_path)
