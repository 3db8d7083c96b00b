"""A student in transformers' Trainer goes on where it stopped, bit for bit, and its best checkpoint comes back."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import zsaq
from in_trainer import assert_equal, tensors, trainer
from students import CONFIGS, TABLES, TEACHERS, bits, one_thread, student_of
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
    saved = load_file(tmp_path / "final/model.safetensors")
    assert not [key for key in saved if key.endswith(".latent") or ".weight_quantizer." in key]
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
    with pytest.raises(ValueError, match=r"word_embeddings: these are the codes of a saved model.*checkpoint-<step>"):
        student.load_state_dict(load_file(tmp_path / "model/model.safetensors"), strict=False)


@pytest.mark.parametrize(
    ("key", "value"), [("latent", torch.zeros(2)), ("weight_quantizer.ranges.scale", torch.zeros(32, 2))]
)
def test_a_checkpoint_that_fits_no_layer_is_refused(key: str, value: Tensor, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-7"
    student_of("bert", CONFIGS["w2a8"]).save_pretrained(folder)
    state, name = load_file(folder / "model.safetensors"), f"bert.pooler.dense.{key}"
    assert state[name].shape != value.shape
    save_file(state | {name: value}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=rf"pooler.dense: {name} is .*its plan asks for floats"):
        zsaq.load(folder)
