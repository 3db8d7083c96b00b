"""The round-trip matrix: architectures x ways of loading, each through transformers' Auto classes and `zsaq.load`.

In float32 a model comes back as the student, bit for bit. In another dtype the reference is written out below: a float
model of the same class that transformers loads in that dtype, its weights scale times code in float32 and so rounded
once, what goes into its layers and out of its ReLUs rounded by the student's quantizers in the model's dtype.
`pytest -v -m ""` prints the matrix.
"""

import copy
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForImageClassification, AutoModelForSequenceClassification

import students
import vision_students
from vision_toys import images
from zsaq import Grid, QuantConfig, coverage, load
from zsaq.quant.layers import QuantConv1D, quant_activations, quant_layers
from zsaq.quant.packed import packed_layers
from zsaq.vision.presets import psaq, uniform

TEXT: dict[str, Any] = {"input_ids": students.IDS}
TABLE = QuantConfig(Grid(4), Grid(8, per="token"), rules=(("transformer.wte", QuantConfig.parse("w3a8")),))
CLASSIFY, CAUSAL, IMAGE = AutoModelForSequenceClassification, AutoModelForCausalLM, AutoModelForImageClassification
Family = tuple[Callable[[], Any], Callable[[], Any], dict[str, Any], Any]  # student, float model, batch, Auto class


def text(family: str, config: QuantConfig, auto: Any) -> Family:
    return lambda: students.student_of(family, config), students.TEACHERS[family], TEXT, auto


def vision(family: str, preset: Callable[..., QuantConfig], bits: str) -> Family:
    make, size = vision_students.FAMILIES[family]
    batch = {"pixel_values": images(3, size, seed=9)}
    return lambda: vision_students.student_of(family, preset, bits), make, batch, IMAGE


FAMILIES: dict[str, Family] = {
    "bert": text("bert", students.CONFIGS["w2a8"], CLASSIFY),
    "gpt2": text("gpt2", students.CONFIGS["w4a8g16"], CAUSAL),
    "gpt2-tied": text("gpt2", TABLE, CAUSAL),
    "opt": text("opt", students.CONFIGS["static"], CAUSAL),
    "llama": text("llama", students.CONFIGS["asymmetric"], CAUSAL),
    "resnet": vision("resnet", uniform, "w4a4"),
    "mobilenet": vision("mobilenet", uniform, "w8a8"),
    "vit": vision("vit", psaq, "w4a8"),
    "swin": vision("swin", psaq, "w4a8"),
}
WAYS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"dtype": torch.bfloat16},
    "float16": {"dtype": torch.float16},
    "device_map=cpu": {"device_map": "cpu"},
    "device_map=auto": {"device_map": "auto"},
    "device_map=auto-bfloat16": {"device_map": "auto", "dtype": torch.bfloat16},
    "sharded": {},
    "sharded-bfloat16": {"dtype": torch.bfloat16},
}
FAST = {("bert", way) for way in WAYS} | {(family, "bfloat16") for family in FAMILIES if family != "mobilenet"}
MATRIX = [
    pytest.param(*cell, id="-".join(cell), marks=[] if cell in FAST else pytest.mark.slow)
    for cell in product(FAMILIES, WAYS)
]
SMALL = [pytest.param(f, marks=[] if f in ("gpt2-tied", "resnet") else pytest.mark.slow) for f in FAMILIES]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting threads takes longer than reading these small files."""
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")


@cache
def student_of(family: str) -> Any:
    torch.manual_seed(0)
    return FAMILIES[family][0]()


@torch.no_grad()
def logits(model: nn.Module, family: str, dtype: torch.dtype = torch.float32) -> Tensor:
    batch = FAMILIES[family][2]
    return model(**{k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()}).logits


@torch.no_grad()
def stated(student: Any, family: str, dtype: torch.dtype, folder: Path) -> nn.Module:
    """The reference for another dtype than the student's."""
    reference = FAMILIES[family][1]().eval()
    state = {key: value for key, value in student.state_dict().items() if key in reference.state_dict()}
    for name, layer in quant_layers(student):
        weight = layer.dequantized()
        state[f"{name}.weight"] = weight.T if isinstance(layer, QuantConv1D) else weight.view_as(layer.weight)
    reference.load_state_dict(state)
    reference.save_pretrained(folder)
    reference = type(reference).from_pretrained(folder, dtype=dtype)
    for name, layer in quant_layers(student):
        if (rounded := copy.deepcopy(layer.input_quantizer)) is not None:
            reference.get_submodule(name).register_forward_pre_hook(lambda _, args, q=rounded: (q(args[0]), *args[1:]))
    for name, layer in quant_activations(student):
        rounded = copy.deepcopy(layer.output_quantizer)
        reference.get_submodule(name).register_forward_hook(lambda _, args, out, q=rounded: q(out))
    return reference


@pytest.mark.parametrize(("family", "way"), MATRIX)
def test_the_matrix(family: str, way: str, tmp_path: Path) -> None:
    student, auto, options = student_of(family), FAMILIES[family][3], WAYS[way]
    dtype = options.get("dtype", torch.float32)
    student.save_pretrained(tmp_path / "saved", max_shard_size="2KB" if "sharded" in way else "1GB")
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) > 1 or "sharded" not in way
    wanted = logits(student, family)
    if dtype != torch.float32:
        wanted = logits(stated(student, family, dtype, tmp_path / "floats"), family, dtype)
    for loaded in (auto.from_pretrained(tmp_path / "saved", **options), load(tmp_path / "saved", **options)):
        computed = logits(loaded, family, dtype)
        assert loaded.dtype == computed.dtype == dtype and torch.equal(computed, wanted)
        assert coverage(loaded) == coverage(student)
        assert all(layer.scale.dtype == torch.float32 for _, layer in packed_layers(loaded) if layer.table is None)


@pytest.mark.parametrize("family", SMALL)
def test_a_loaded_model_is_saved_again_as_it_is(family: str, tmp_path: Path) -> None:
    student_of(family).save_pretrained(tmp_path / "saved")
    half = load(tmp_path / "saved", dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    again = load(tmp_path / "half")
    assert again.dtype == torch.bfloat16
    assert torch.equal(logits(again, family, torch.bfloat16), logits(half, family, torch.bfloat16))
    first, second = (load_file(tmp_path / folder / "model.safetensors") for folder in ("saved", "half"))
    assert first.keys() == second.keys()
    packed = [key for key in first if key.endswith((".codes", ".scale", ".zero"))]
    assert packed and all(torch.equal(first[key], second[key]) for key in packed)


@pytest.mark.parametrize("family", ["bert", "resnet"])
def test_a_model_with_a_device_map_is_saved_again(family: str, tmp_path: Path) -> None:
    student_of(family).save_pretrained(tmp_path / "saved")
    load(tmp_path / "saved").save_pretrained(tmp_path / "plain")
    mapped = load(tmp_path / "saved", device_map="auto")
    mapped.save_pretrained(tmp_path / "mapped")
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / "mapped" / file).read_bytes()


@pytest.mark.slow
def test_a_model_partly_on_disk_computes_the_same(tmp_path: Path) -> None:
    student = student_of("bert")
    student.save_pretrained(tmp_path / "saved")
    places = {"bert.embeddings": "cpu", "bert.encoder": "disk", "bert.pooler": "cpu", "classifier": "cpu"}
    loaded = FAMILIES["bert"][3].from_pretrained(
        tmp_path / "saved", device_map=places, offload_folder=str(tmp_path / "disk")
    )
    assert torch.equal(logits(loaded, "bert"), logits(student, "bert"))


@pytest.mark.parametrize("family", ["bert", "gpt2-tied", "opt", "resnet", "vit"])
def test_casting_late_is_casting_early(family: str, tmp_path: Path) -> None:
    student_of(family).save_pretrained(tmp_path)
    late: Any = load(tmp_path)
    late.to(torch.bfloat16)
    early = load(tmp_path, dtype=torch.bfloat16)
    assert torch.equal(logits(late, family, torch.bfloat16), logits(early, family, torch.bfloat16))
