"""Numbers that are none are refused by the name of their tensor: in a teacher before it is quantized, in a file when it
is read, and where the dtype is too narrow for what was saved."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

import zsaq
from students import CONFIGS, TEACHERS, one_thread, student_of
from vision_toys import images, resnet
from zsaq import QuantConfig, ZsaqConfig, quantize_model
from zsaq.io.loading import load
from zsaq.io.saving import save
from zsaq.quant.finite import unfinite

__all__ = ["one_thread"]

BAD = (math.nan, math.inf, -math.inf)
LAYER = "bert.encoder.layer.1.output.dense"
BERT = (
    "bert.embeddings.word_embeddings.weight",
    "bert.embeddings.position_embeddings.weight",
    "bert.encoder.layer.0.output.LayerNorm.weight",
    f"{LAYER}.weight",
    f"{LAYER}.bias",
    "classifier.weight",
)


def norm_of(model: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d))


def spoiled(model: Any, name: str, value: float) -> Any:
    with torch.no_grad():
        model.state_dict(keep_vars=True)[name].view(-1)[-1] = value
    return model


VISION: dict[str, Callable[[nn.Module], str]] = {
    "a running mean": lambda m: f"{norm_of(m)}.running_mean",
    "a running variance": lambda m: f"{norm_of(m)}.running_var",
    "a norm's weight": lambda m: f"{norm_of(m)}.weight",
    "a head's bias": lambda m: "classifier.1.bias",
}


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("name", BERT)
def test_a_teacher_of_language_is_refused_by_name(name: str, value: float, tmp_path: Path) -> None:
    teacher = spoiled(TEACHERS["bert"]().eval(), name, value)
    wanted = name.replace(".", r"\.")
    with pytest.raises(ValueError, match=wanted):
        quantize_model(teacher, "w4a8")
    with pytest.raises(ValueError, match=wanted):
        zsaq.quantize(teacher, "w4a8", method="rtn")
    with pytest.raises(ValueError, match=wanted):
        zsaq.compare(teacher, methods=["rtn"], configs=["w4a8"])
    teacher.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{wanted}.*give a model that works"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path, quantization_config=ZsaqConfig("w4a8"))


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("what", VISION)
def test_a_teacher_of_images_is_refused_by_name(what: str, value: float, tmp_path: Path) -> None:
    teacher = resnet()
    name = VISION[what](teacher)
    spoiled(teacher, name, value)
    config = QuantConfig.parse("w4a16")
    for refuse in (
        lambda: quantize_model(teacher, config),
        lambda: zsaq.quantize(teacher, config, method="rtn"),
    ):
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            refuse()
    teacher.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        AutoModelForImageClassification.from_pretrained(tmp_path, quantization_config=ZsaqConfig(config))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("saved")
    teacher = resnet()
    with torch.no_grad():
        teacher(images())
    vision: Any = quantize_model(teacher, QuantConfig.parse("w4a16"))
    return {
        "bert": save(student_of("bert", CONFIGS["static"]), folder / "bert"),
        "resnet": save(vision, folder / "resnet"),
    }


def damaged(saved: Path, target: Path, name: str, value: float) -> Path:
    shutil.copytree(saved, target, ignore=shutil.ignore_patterns("zsaq_manifest.json"))
    state = load_file(target / "model.safetensors")
    state[name] = state[name].clone()
    state[name].view(-1)[-1] = value
    save_file(state, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.mark.parametrize("value", BAD)
def test_every_float_of_a_saved_student_is_looked_at(saved: dict[str, Path], value: float, tmp_path: Path) -> None:
    for kind, folder in saved.items():
        state = load_file(folder / "model.safetensors")
        for number, name in enumerate(key for key, tensor in state.items() if tensor.is_floating_point()):
            owner = name.rpartition(".input_quantizer")[0] or name.removesuffix(".scale")
            with pytest.raises(ValueError, match=owner.replace(".", r"\.")) as refusal:
                load(damaged(folder, tmp_path / f"{kind}{number}", name, value))
            assert "again" in str(refusal.value)
            shutil.rmtree(tmp_path / f"{kind}{number}")


@pytest.mark.parametrize(
    ("name", "value", "dtype", "message"),
    [
        (f"{LAYER}.scale", 3e38, torch.float32, rf"{LAYER}: scale times code goes beyond torch\.float32"),
        (f"{LAYER}.scale", 1e5, torch.float16, rf"{LAYER}: scale times code goes beyond torch\.float16"),
        (f"{LAYER}.scale", 3e38, torch.bfloat16, rf"{LAYER}: scale times code goes beyond torch\.bfloat16"),
        (f"{LAYER}.bias", 1e5, torch.float16, rf"{LAYER}\.bias.*not finite.*give dtype=torch\.float32"),
        ("bert.encoder.layer.0.output.LayerNorm.weight", 1e6, torch.float16, "LayerNorm.*not finite"),
        (f"{LAYER}.input_quantizer.ranges.scale", 1e38, torch.float32, rf"{LAYER}.*range goes beyond float32"),
    ],
)
def test_what_the_dtype_does_not_hold_is_refused(
    saved: dict[str, Path], name: str, value: float, dtype: torch.dtype, message: str, tmp_path: Path
) -> None:
    folder = damaged(saved["bert"], tmp_path / "m", name, value)
    with pytest.raises(ValueError, match=message):
        load(folder, dtype=dtype)


def test_a_mask_that_is_not_saved_may_hold_minus_infinity() -> None:
    model = nn.Module()
    model.register_buffer("mask", torch.tensor([0.0, -math.inf]), persistent=False)
    model.register_buffer("kept", torch.tensor([0.0, -math.inf]))
    model.register_buffer("counts", torch.tensor([1]))
    assert list(unfinite(model)) == ["kept"]


KEYS = [f"{grid}.{key}" for grid in ("weight", "input", "embedding") for key in ("bits", "symmetric", "per", "levels")]
WHOLE = ("weight", "input", "activation", "embedding", "ranges", "rules", *KEYS)
RULED = tuple(f"rules.0.{key}" for key in WHOLE if key != "rules")


@pytest.mark.parametrize("lost", [*WHOLE, *RULED])
def test_a_saved_configuration_is_whole_or_refused(lost: str, tmp_path: Path) -> None:
    """Without weight.levels, half-integer levels would come back as integers."""
    config = QuantConfig.parse("w2a8")
    config = QuantConfig(config.weight, config.input, config.embedding, rules=((LAYER, config),))
    student: Any = quantize_model(TEACHERS["bert"]().eval(), config)
    student.save_pretrained(tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())
    place: Any = data["quantization_config"]["config"]
    *path, key = lost.split(".")
    if path[:1] == ["rules"]:
        place, path = place["rules"][0][1], path[2:]
    for part in path:
        place = place[part]
    del place[key]
    (tmp_path / "config.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=rf"the saved configuration has no {lost.replace('.', chr(92) + '.')}"):
        load(tmp_path)
