"""Static ranges, tensors and configurations of vision that are missing or senseless are refused by name."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageClassification

from students import one_thread
from vision_students import both
from vision_toys import images, resnet
from zsaq import calibrate, load, quantize_model
from zsaq.quant.packed_model import pack_plan
from zsaq.quant.plan import plan_of
from zsaq.vision.presets import brecq, uniform

__all__ = ["one_thread"]

RELU, CONV = "resnet.embedder.embedder.activation", "resnet.encoder.stages.1.layers.0.shortcut.convolution"
STATIC = f"{RELU}.output_quantizer.ranges", f"{CONV}.input_quantizer.ranges"


@pytest.mark.parametrize("where", STATIC)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({"scale": 0}, r"the static range has seen nothing: run zsaq\.calibrate"),
        ({"scale": math.nan}, "must be finite"),
        ({"scale": math.inf}, "must be finite"),
        ({"scale": -1}, "not empty"),
        ({"scale": 9e-9}, r"not empty, .* run zsaq\.calibrate\(student, batches\) on other batches"),
        ({"zero": math.nan}, "a zero from 0 to"),
        ({"zero": -1}, "a zero from 0 to"),
        ({"zero": 256}, "a zero from 0 to"),
        ({"zero": 2.5}, "a zero from 0 to"),
    ],
)
def test_senseless_ranges_are_neither_saved_nor_loaded(
    where: str, spoil: dict[str, float], message: str, tmp_path: Path
) -> None:
    student = calibrate(both(), [{"pixel_values": images(4, 32)}])
    student.save_pretrained(tmp_path / "good")
    with torch.no_grad():
        for key, value in spoil.items():
            student.get_buffer(f"{where}.{key}").fill_(value)
    name = where.rpartition(".")[0].rpartition(".")[0]
    with pytest.raises(ValueError, match=rf"{name}: .*{message}"):
        student.save_pretrained(tmp_path / "bad")
    tensors = load_file(tmp_path / "good" / "model.safetensors")
    for key, value in spoil.items():
        tensors[f"{where}.{key}"].fill_(value)
    save_file(tensors, tmp_path / "good" / "model.safetensors", metadata={"format": "pt"})
    for read in (load, AutoModelForImageClassification.from_pretrained):
        with pytest.raises(ValueError, match=rf"{name}: .*{message}.*save the student again"):
            read(tmp_path / "good")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    calibrate(both(), [{"pixel_values": images(4, 32)}]).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.pop(f"{STATIC[0]}.scale"), rf"{RELU}: the tensor .*ranges\.scale is missing"),
        (lambda t: t.pop(f"{STATIC[1]}.zero"), rf"{CONV}: the tensor .*ranges\.zero is missing"),
        (lambda t: t.update({f"{STATIC[0]}.scale": torch.ones(2, 1)}), rf"{RELU}: .*scale is .*\(2, 1\).*asks for"),
        (lambda t: t.update({f"{STATIC[0]}.zero": torch.ones(1, 1).half()}), rf"{RELU}: .*zero is \('F16'"),
        (lambda t: t.update({f"{RELU}.stranger": torch.ones(1)}), rf"{RELU}: its plan knows no tensors"),
        (lambda t: t.pop("resnet.embedder.embedder.normalization.running_var"), r"running_var.*drawn at random"),
    ],
)
def test_damaged_tensors_are_refused(
    saved: Path, tmp_path: Path, spoil: Callable[[dict[str, Tensor]], Any], message: str
) -> None:
    tensors = load_file(saved / "model.safetensors")
    spoil(tensors)
    shutil.copy(saved / "config.json", tmp_path)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (f'"{RELU}"', '"resnet.pooler"', r"resnet\.pooler: .* has AdaptiveAvgPool2d there"),
        ('"activation": {', '"activation": null, "stranger": {', "unknown keys"),
        ('"hidden_act": "relu"', '"hidden_act": "gelu"', r"activation: .* has GELUActivation there"),
    ],
)
def test_hostile_configs_are_refused(saved: Path, tmp_path: Path, old: str, new: str, message: str) -> None:
    text = (saved / "config.json").read_text()
    assert old in text
    (tmp_path / "config.json").write_text(text.replace(old, new))
    shutil.copy(saved / "model.safetensors", tmp_path)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_an_activation_without_a_grid_is_refused(saved: Path) -> None:
    plan = plan_of(load(saved))
    chosen = {**plan.chosen, RELU: replace(plan.chosen[RELU], activation=None)}
    with pytest.raises(ValueError, match=rf"{RELU}: the configuration has no grid for activations"):
        pack_plan(resnet(), replace(plan, chosen=chosen))


def test_an_uncalibrated_student_is_not_saved(tmp_path: Path) -> None:
    for preset in (uniform, brecq):
        student = quantize_model(teacher := resnet(), preset("w4a4", teacher))
        with pytest.raises(ValueError, match=r"resnet\.\S+: the static range has seen nothing: run zsaq\.calibrate"):
            student.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_loaded_model_refuses_a_convolution_s_input_per_row_of_pixels(saved: Path, tmp_path: Path) -> None:
    text = (saved / "config.json").read_text()
    config = json.loads(text)
    config["quantization_config"]["config"]["input"]["per"] = "token"
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(saved / "model.safetensors", tmp_path)
    with pytest.raises(ValueError, match=r"resnet\.\S+: this convolution's input per token"):
        load(tmp_path)
