"""One table: what happened to a saved model and what the user sees (`pytest -v` prints it); then bytes flipped. Each
kind of damage stands once; `test_hub_refusals.py`, `test_vision_hub_refusals.py` hold every single tensor and key."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import ViTConfig, ViTForImageClassification

from students import bits, one_thread, student_of
from zsaq import Grid, QuantConfig, quantize_model
from zsaq.io.checksums import MANIFEST
from zsaq.io.loading import load
from zsaq.io.saving import save

__all__ = ["one_thread"]

LAYER = "bert.encoder.layer.1.output.dense"
WEIGHTS = "model.safetensors"
AGAIN = "save the student again with save_pretrained, or fetch the files again"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rules = (
        (LAYER, QuantConfig(Grid(3), Grid(8, per="tensor"))),
        ("bert.pooler.dense", QuantConfig.parse("w2a8-ternary")),
    )
    config = QuantConfig(Grid(2, levels="half"), embedding=Grid(8), rules=rules)
    return save(student_of("bert", config), tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """Without manifest: the loader has nothing but the model to judge by."""
    copied = Path(shutil.copytree(saved, tmp_path / "copy"))
    (copied / MANIFEST).unlink()
    return copied


def tensors(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        state = load_file(folder / WEIGHTS)
        change(state)
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})

    return spoil


def config(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        data = json.loads((folder / "config.json").read_text())
        change(data)
        (folder / "config.json").write_text(json.dumps(data))

    return spoil


def pad(state: dict[str, Tensor]) -> None:
    """32 rows of 32 x 3 bits are whole bytes; rows of 48 as well: make the layer's last byte 7 codes and a half."""
    state["bert.pooler.dense.codes"][0, 0] |= 3


def set_scale(value: float, layer: str = LAYER) -> Callable[[Path], None]:
    return tensors(lambda t: t[f"{layer}.scale"][0].fill_(value))


def as_pickle(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def two_shards_of_one_tensor(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    save_file(state, folder / names[0], metadata={"format": "pt"})
    save_file({f"{LAYER}.scale": state[f"{LAYER}.scale"] * 2}, folder / names[1], metadata={"format": "pt"})
    index = dict.fromkeys(state, names[0]) | {f"{LAYER}.scale": names[1]}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


PLAN = "quantization_config"
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a layer drawn at random": (tensors(lambda t: t.pop("classifier.weight")), r"classifier\.weight.*drawn at random"),
    "a norm drawn at random": (
        tensors(lambda t: t.pop("bert.encoder.layer.0.output.LayerNorm.bias")),
        r"layer\.0\.output\.LayerNorm\.bias.*are missing and were drawn at random",
    ),
    "nothing quantized, no plan": (config(lambda c: c.pop(PLAN)), "no quantization_config, so it is a float model"),
    "nothing quantized, empty plan": (config(lambda c: c[PLAN].update(modules=[])), "modules names nothing"),
    "a scale is missing": (tensors(lambda t: t.pop(f"{LAYER}.scale")), rf"{LAYER}: the tensor .*scale is missing"),
    "a scale is nan": (set_scale(float("nan")), rf"{LAYER}: scale is not finite and positive"),
    "a scale is infinite": (set_scale(float("inf")), rf"{LAYER}: scale is not finite and positive"),
    "a scale is zero": (set_scale(0.0), rf"{LAYER}: scale is not finite and positive"),
    "a scale is negative, and the grid even": (
        set_scale(-1.0, "bert.encoder.layer.0.output.dense"),
        r"layer\.0\.output\.dense: scale is not finite and positive",
    ),
    "a code is out of range": (tensors(pad), r"bert\.pooler\.dense: a code is 3, the grid ends at 2"),
    "another shape": (
        tensors(lambda t: t.update({f"{LAYER}.codes": t[f"{LAYER}.codes"][:9]})),
        rf"{LAYER}: .*codes is",
    ),
    "another bit width": (
        config(lambda c: c[PLAN]["config"]["rules"][0][1]["weight"].update(bits=4)),
        rf"{LAYER}: .*codes is \('U8', \(32, 18\)\), its plan asks for \('U8', \(32, 24\)\)",
    ),
    "another model": (config(lambda c: c.update(hidden_size=64)), "its plan asks for"),
    "an empty static range": (
        tensors(lambda t: t[f"{LAYER}.input_quantizer.ranges.scale"].zero_()),
        rf"{LAYER}: the static range has seen nothing",
    ),
    "a tensor in two files": (two_shards_of_one_tensor, rf"{LAYER}\.scale stands in another file already"),
    "a tensor of nobody": (tensors(lambda t: t.update(stranger=torch.ones(1))), r"stranger.*belong to no layer"),
    "a truncated file": (lambda f: os.truncate(f / WEIGHTS, 9000), "is damaged"),
    "an empty file": (lambda f: os.truncate(f / WEIGHTS, 0), "is damaged|no readable"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), r"no readable model\.safetensors"),
    "weights as a pickle": (as_pickle, r"no readable model\.safetensors"),
    "an adapter beside": (lambda f: (f / "adapter_config.json").write_text("{}"), "holds an adapter"),
    "remote code": (
        config(lambda c: c.update(auto_map={"AutoModelForSequenceClassification": "evil.Model"})),
        r"its config\.json has auto_map, which runs other code",
    ),
    "remote pipelines": (config(lambda c: c.update(custom_pipelines={"x": {"impl": "y"}})), "has custom_pipelines"),
    "another file of weights": (
        config(lambda c: c.update(transformers_weights="other.safetensors")),
        "has transformers_weights, which runs other code or reads other files",
    ),
    "a config of no model": (config(lambda c: c.update(hidden_act="eelu")), "no model can be made of its config.json"),
    "a config that divides by zero": (config(lambda c: c.update(num_attention_heads=0)), "no model can be made"),
    "a config that is no json": (
        lambda f: (f / "config.json").write_text("{"),
        "no folder or Hub id of a saved student",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), "no folder or Hub id of a saved student"),
    "a later format": (config(lambda c: c[PLAN].update(format_version=2)), "format_version is 2, .*upgrade zsaq"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_each_damage_is_refused_by_name_with_its_remedy(damage: str, folder: Path) -> None:
    spoil, message = DAMAGE[damage]
    spoil(folder)
    with pytest.raises(ValueError, match=message) as refusal:
        load(folder)
    assert any(
        word in str(refusal.value) for word in ("again", "load it with", "take it", "upgrade", "name each", "give")
    )


@pytest.mark.parametrize("damage", DAMAGE)
def test_with_a_manifest_the_file_is_named_before_it_is_read(damage: str, folder: Path, saved: Path) -> None:
    shutil.copy(saved / MANIFEST, folder)
    DAMAGE[damage][0](folder)
    with pytest.raises(ValueError, match=r"(config\.json|safetensors\S*|\.bin) (is (missing|foreign)|has )"):
        load(folder)


def test_padding_bits_are_zero(tmp_path: Path) -> None:
    shape = ViTConfig(
        hidden_size=30, num_hidden_layers=1, num_attention_heads=2, intermediate_size=31, image_size=8, patch_size=4
    )
    student: Any = quantize_model(ViTForImageClassification(shape), QuantConfig(Grid(3)))
    student.save_pretrained(tmp_path)
    load(tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    name = next(key for key, value in state.items() if key.endswith(".codes") and value.shape == (30, 12))
    state[name][0, -1] |= 128
    save_file(state, tmp_path / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"{name.removesuffix('.codes')}: the bits that pad .* are not zero; {AGAIN}"):
        load(tmp_path)


@pytest.fixture(scope="module")
def victim(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes], Tensor]:
    copied = Path(shutil.copytree(saved, tmp_path_factory.mktemp("victim") / "copy"))
    return copied, {path.name: path.read_bytes() for path in copied.iterdir()}, bits(load(copied))


def outcome(victim: tuple[Path, dict[str, bytes], Tensor], name: str, data: bytes) -> str:
    folder, whole, wanted = victim
    (folder / name).write_bytes(data)
    try:
        return "same" if torch.equal(bits(load(folder)), wanted) else "other"
    except ValueError:
        return "refused"
    finally:
        (folder / name).write_bytes(whole[name])


places = st.integers(0, 2**31)


@settings(max_examples=60)
@given(name=st.sampled_from(["config.json", WEIGHTS, MANIFEST]), place=places, change=st.integers(1, 255))
def test_a_changed_byte_is_refused_or_harmless(victim: Any, name: str, place: int, change: int) -> None:
    data = bytearray(victim[1][name])
    data[place % len(data)] ^= change
    seen = outcome(victim, name, bytes(data))
    assert seen == "refused" or (seen == "same" and name == MANIFEST)


@settings(max_examples=40)
@given(place=places, change=st.integers(1, 255))
def test_without_a_manifest_a_changed_header_is_refused_or_harmless(victim: Any, place: int, change: int) -> None:
    folder, whole, _ = victim
    data = bytearray(whole[WEIGHTS])
    data[place % (8 + int.from_bytes(data[:8], "little"))] ^= change
    (folder / MANIFEST).unlink()
    try:
        assert outcome(victim, WEIGHTS, bytes(data)) in ("refused", "same")
    finally:
        (folder / MANIFEST).write_bytes(whole[MANIFEST])


def test_a_repository_of_the_hub_is_checked_too(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--toy"
    snapshot = repository / "snapshots" / commit
    shutil.copytree(saved, repository / "blobs")
    snapshot.mkdir(parents=True)
    for path in saved.iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    for revision in (None, "main", commit):
        assert torch.equal(bits(load("someone/toy", revision=revision)), bits(load(saved)))
    with (repository / "blobs" / WEIGHTS).open("r+b") as file:
        file.write(b"\1")
    with pytest.raises(ValueError, match=r"model\.safetensors has the sha256"):
        load("someone/toy")
    (snapshot / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        load("someone/toy")
    for nothing in ("someone/else", "no/such/folder", "what is this?"):
        with pytest.raises(ValueError, match="is no folder or Hub id of a saved student"):
            load(nothing)
