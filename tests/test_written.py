"""What is written into a loaded model is computed with, and kept or refused by every way to save it."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn

import zsaq
from students import CONFIGS, TABLES, TEACHERS, bits, one_thread, student_of
from vision_students import student_of as vision_student
from zsaq.quant.config import Grid, QuantConfig
from zsaq.quant.model import quantize_model
from zsaq.quant.packed import packed_layers

__all__ = ["one_thread"]
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's
LAYERS = {
    "bert": "bert.encoder.layer.1.output.dense",
    "gpt2": "transformer.h.0.mlp.c_fc",
    "llama": "model.layers.0.mlp.up_proj",
    "table": "bert.embeddings.word_embeddings",
    "tied": "lm_head",
}
TIED = QuantConfig(weight=Grid(4), rules=((TABLES["gpt2"], QuantConfig(embedding=Grid(4, per=8))),))
WAYS: dict[str, Callable[[Any, Path], Any]] = {
    "zsaq.save": zsaq.save,
    "save_pretrained": lambda model, folder: model.save_pretrained(folder),
    "of transformers": lambda model, folder: type(model).save_pretrained(model, folder),
    "in shards": lambda model, folder: model.save_pretrained(folder, max_shard_size="10KB"),
    "a copy": lambda model, folder: copy.deepcopy(model).save_pretrained(folder),
    "cast": lambda model, folder: model.to(torch.float64).save_pretrained(folder),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("written")
    made = {family: student_of(family, CONFIGS["w4a8g16"]) for family in ("bert", "gpt2", "llama")}
    made["tied"] = student_of("gpt2", TIED)
    saved = {name: zsaq.save(student, folder / name) for name, student in made.items()}
    return {**saved, "table": saved["bert"]}


def loaded(folders: dict[str, Path], case: str) -> tuple[Any, Any, Tensor]:
    """A model, one of its layers, and its answers."""
    model = zsaq.load(folders[case])
    return model, model.get_submodule(LAYERS[case]), bits(model)


def replace_data(weight: Tensor) -> None:
    weight.data = weight.data * 2


WRITES: dict[str, Callable[[Tensor], Any]] = {
    "copy_": lambda weight: weight.data.copy_(weight.data * 2),
    "add_": lambda weight: weight.add_(weight.clone()),
    "an entry": lambda weight: weight[5].zero_(),
    "other data": replace_data,
}


@pytest.mark.parametrize("case", LAYERS)
@pytest.mark.parametrize("write", WRITES)
@torch.no_grad()
def test_a_write_is_computed_with_and_not_saved(
    folders: dict[str, Path], case: str, write: str, tmp_path: Path
) -> None:
    model, layer, before = loaded(folders, case)
    WRITES[write](layer.weight)
    written = bits(model)
    assert not torch.equal(written, before)
    model.to(torch.float64).to(torch.float32)
    assert torch.equal(bits(model), written)
    for name, way in WAYS.items():
        with pytest.raises(ValueError, match=r"codes, which cannot hold what is written.*float model and quantize"):
            way(model, tmp_path / name)
    assert not (tmp_path / "zsaq.save").exists()


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("case", ["bert", "gpt2", "llama", "table"])
def test_a_merged_adapter_is_noticed(folders: dict[str, Path], case: str, safe: bool, tmp_path: Path) -> None:
    model, _, before = loaded(folders, case)
    target = LAYERS[case].rpartition(".")[2]
    config = LoraConfig(target_modules=[target], init_lora_weights=False, fan_in_fan_out=case == "gpt2")
    merged: Any = get_peft_model(model, config).merge_and_unload(safe_merge=safe)
    assert not torch.equal(bits(merged), before)
    with pytest.raises(ValueError, match=f"{target}: the weight of a loaded model is read from its codes"):
        zsaq.save(merged, tmp_path / "merged")


def test_a_convolution_is_no_exception(tmp_path: Path) -> None:
    model: Any = zsaq.load(zsaq.save(vision_student("resnet"), tmp_path / "model"))
    convolution = next(layer for _, layer in packed_layers(model) if isinstance(layer, nn.Conv2d))
    replace_data(convolution.weight)
    with pytest.raises(ValueError, match="cannot hold what is written"):
        zsaq.save(model, tmp_path / "again")


KEPT: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda model: None,
    "bias in place": lambda model: model.get_submodule(LAYERS["bert"]).bias.copy_(torch.randn(32)),
    "another bias": lambda model: setattr(model.get_submodule(LAYERS["bert"]), "bias", nn.Parameter(torch.randn(32))),
    "the head": lambda model: model.classifier.weight.mul_(2),
    "scale": lambda model: model.get_submodule(LAYERS["bert"]).scale.mul_(2),
    "codes": lambda model: model.get_submodule(LAYERS["bert"]).codes.bitwise_xor_(0x77),
    "tie_weights": lambda model: model.tie_weights(),
    "a table of the same size": lambda model: model.resize_token_embeddings(200),
    "half precision": lambda model: model.to(torch.bfloat16),
    "its own state": lambda model: model.load_state_dict(model.state_dict()),
    "read only": lambda model: [layer.weight.sum() for _, layer in packed_layers(model)],
}


@pytest.mark.parametrize("kind", KEPT)
@torch.no_grad()
def test_what_codes_can_hold_is_kept(folders: dict[str, Path], kind: str, tmp_path: Path) -> None:
    model, _, before = loaded(folders, "bert")
    KEPT[kind](model)
    edited = kind in ("another bias", "bias in place", "the head", "scale", "codes", "half precision")
    assert torch.equal(bits(model), before) != edited
    assert torch.equal(bits(zsaq.load(zsaq.save(model, tmp_path / "again"))), bits(model))


def test_a_saved_state_is_taken_up_whole(folders: dict[str, Path]) -> None:
    model, other = zsaq.load(folders["bert"]), student_of("bert", CONFIGS["w4a8g16"])
    zsaq.save(other, folders["bert"].parent / "other")
    model.load_state_dict(load_file(folders["bert"].parent / "other/model.safetensors"))
    assert torch.equal(bits(model), bits(other))


BROKEN: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a parameter": (
        lambda model: setattr(model.get_submodule(LAYERS["bert"]), "weight", nn.Parameter(torch.ones(32, 48))),
        "cannot hold what is written",
    ),
    "a tensor": (
        lambda model: setattr(model.get_submodule(LAYERS["bert"]), "weight", torch.ones(32, 48)),
        "cannot hold what is written",
    ),
    "weights of the float model": (
        lambda model: model.load_state_dict(TEACHERS["bert"]().state_dict(), strict=False),
        r"word_embeddings.weight cannot be loaded",
    ),
    "another layer": (
        lambda model: setattr(model.bert.encoder.layer[1].output, "dense", nn.Linear(48, 32)),
        "dense was quantized and is a Linear in floats",
    ),
    "a scale that is nan": (
        lambda model: model.get_submodule(LAYERS["bert"]).scale.fill_(torch.nan),
        "scale is not finite",
    ),
    "more tokens": (lambda model: model.resize_token_embeddings(240), "PackedEmbedding of 200 tokens.*cannot get 240"),
    "fewer tokens": (lambda model: model.bert.resize_token_embeddings(90), "cannot get 90"),
    "padded tokens": (lambda model: model.resize_token_embeddings(pad_to_multiple_of=64), "cannot get 256"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_they_cannot_hold_is_refused(folders: dict[str, Path], kind: str, tmp_path: Path) -> None:
    model, _, _ = loaded(folders, "bert")
    change, message = BROKEN[kind]
    with pytest.raises(ValueError, match=message):
        change(model)
        zsaq.save(model, tmp_path / "again")


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tables_in_floats_are_resized_and_quantized_ones_are_not(family: str, tmp_path: Path) -> None:
    config = QuantConfig(weight=Grid(4), input=Grid(8, per="token"))
    student: Any = quantize_model(TEACHERS[family]().eval(), config)
    student.resize_token_embeddings(210, mean_resizing=False)
    model: Any = zsaq.load(zsaq.save(student, tmp_path / "first"))
    assert torch.equal(bits(model, ids := torch.tensor([[3, 205, 209]])), bits(student, ids))
    model.resize_token_embeddings(215, mean_resizing=False)
    ids = torch.tensor([[3, 205, 214]])
    assert torch.equal(bits(zsaq.load(zsaq.save(model, tmp_path / "second")), ids), bits(model, ids))
    with pytest.raises(ValueError, match="QuantEmbedding of 200 tokens is quantized and cannot get 210"):
        quantize_model(TEACHERS[family](), "w4a8e4").resize_token_embeddings(210)


def test_offloaded_parts_load_and_are_not_saved(folders: dict[str, Path], tmp_path: Path) -> None:
    spread = {"bert.embeddings": "cpu", "bert.encoder": "disk", "bert.pooler": "cpu", "classifier": "cpu"}
    model = zsaq.load(folders["bert"], device_map=spread)
    assert torch.equal(bits(model), bits(zsaq.load(folders["bert"])))
    with pytest.raises(ValueError, match=r"bert.encoder.* lies on the meta device.*load the model whole"):
        zsaq.save(model, tmp_path / "again")
