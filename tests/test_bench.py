"""The table of runtimes: complete, consistent with itself and with the files. No time is compared with another."""

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
)

from exported import exported
from zsaq.deploy import bench as page
from zsaq.deploy import timing
from zsaq.deploy.bench import bench, slower_at
from zsaq.deploy.onnx.session import Session
from zsaq.deploy.onnx.write import MODEL, WEIGHTS
from zsaq.deploy.timing import BASE, OURS, floats_of
from zsaq.io.added import BENCH, KEY, read_added
from zsaq.io.checksums import fingerprint
from zsaq.io.inputs import random_inputs
from zsaq.io.loading import load
from zsaq.quant.config import Grid, QuantConfig
from zsaq.quant.model import quantize_model
from zsaq.quant.packed import packed_layers

__all__ = ["exported"]
ALL = [
    BASE, "torch bf16", "onnxruntime fp32", "onnxruntime dynamic int8", "torchao int8", "bitsandbytes nf4",
    "zsaq torch", OURS, "zsaq onnx, in blocks", "zsaq openvino",
]  # fmt: skip
UNMADE = {"zsaq openvino"}  # of which the student has no export
ABSENT = {"torchao int8": "torchao.quantization", "bitsandbytes nf4": "bitsandbytes"}


SHAPES = ((1, 2), (3, 7))


@pytest.fixture(scope="module")
def measured(exported: Path) -> dict[str, Any]:
    """With our own graph in place of the float one, which takes seconds to trace."""
    with pytest.MonkeyPatch.context() as patch:
        source = exported / "onnx"
        copy = lambda _, target, __, optimize, size: shutil.copytree(source, target, dirs_exist_ok=True)  # noqa: E731
        patch.setattr(timing, "write_graph", copy)
        for package in ABSENT.values():
            patch.setitem(sys.modules, package, None)
        return bench(exported, shapes=SHAPES, repeats=2, threads=1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_all_runtimes_that_are_installed_run(exported: Path) -> None:
    measured = bench(exported, shapes=SHAPES, repeats=1)
    sizes = {row["runtime"]: row["bytes"] for row in measured["rows"]}
    assert list(sizes) + list(measured["left_out"]) == ALL or set(measured["left_out"]) <= {*ABSENT, *UNMADE}
    assert sizes["onnxruntime dynamic int8"] < sizes["onnxruntime fp32"] < 1.2 * sizes[BASE]


def test_every_runtime_has_a_row_or_a_reason(measured: dict[str, Any]) -> None:
    assert [row["runtime"] for row in measured["rows"]] == [name for name in ALL if name not in {*ABSENT, *UNMADE}]
    assert measured["left_out"].keys() == ABSENT.keys() | UNMADE
    assert all("there is no export: zsaq export" in measured["left_out"][name] for name in UNMADE)
    for name, package in ABSENT.items():
        assert "ModuleNotFoundError" in measured["left_out"][name] and package in measured["left_out"][name]
    assert json.loads(json.dumps(measured, allow_nan=False)) == measured


def test_rows_have_times_and_ratios_of_these(measured: dict[str, Any]) -> None:
    base = measured["rows"][0]
    for row in measured["rows"]:
        assert set(row["ms"]) == set(row["faster"]) == {"1x2", "3x7"}
        for shape, times in row["ms"].items():
            assert 0 < times["best"] <= times["median"] < math.inf
            assert row["faster"][shape] == base["ms"][shape]["best"] / times["best"]
        assert row["smaller"] == base["bytes"] / row["bytes"]
        assert type(row["memory"]) is int and row["memory"] >= 0
    assert measured["threads"] == 1 and measured["repeats"] == 2 and "rough" in measured["memory"]
    assert torch.get_num_threads() == 1


def test_sizes_are_those_of_files(measured: dict[str, Any], exported: Path) -> None:
    sizes = {row["runtime"]: row["bytes"] for row in measured["rows"]}
    assert sizes["zsaq torch"] == (exported / "model.safetensors").stat().st_size
    assert sizes[OURS] == sum((exported / "onnx" / name).stat().st_size for name in (MODEL, WEIGHTS))
    whole = sum(p.numel() for p in floats_of(load(exported)).parameters())
    for name, width in ((BASE, 4), ("torch bf16", 2)):
        assert 0 < sizes[name] - width * whole < 100_000


def test_slower_says_who_is_faster_than_our_export(measured: dict[str, Any]) -> None:
    best = {row["runtime"]: {shape: times["best"] for shape, times in row["ms"].items()} for row in measured["rows"]}
    for shape in ("1x2", "3x7"):
        faster = [name for name in best if best[name][shape] < best[OURS][shape]]
        assert measured["slower"].get(shape, []) == faster
    rows = {n: {"ms": {s: {"best": t} for s, t in ms.items()}} for n, ms in {
        "a": {"1x2": 1.0, "1x16": 3.0}, OURS: {"1x2": 2.0, "1x16": 2.0}, "b": {"1x2": 1.5, "1x16": 2.0},
    }.items()}  # fmt: skip
    assert slower_at(rows) == {"1x2": ["a", "b"]}
    assert slower_at({BASE: rows["a"]}) == {}


def test_without_an_export_the_command_is_told(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(exported).save_pretrained(tmp_path)
    kept = (BASE, "zsaq torch", OURS)
    monkeypatch.setattr(page, "RUNTIMES", tuple(row for row in page.RUNTIMES if row.name in kept))
    measured = bench(tmp_path, repeats=1, write=True)
    assert read_added(tmp_path / BENCH, fingerprint(tmp_path)) == measured | {KEY: fingerprint(tmp_path)}
    assert (
        list(measured["left_out"]) == [OURS]
        and "zsaq export" in measured["left_out"][OURS]
        and measured["slower"] == {}
    )
    assert list(measured["rows"][0]["ms"]) == ["1x2", "1x16"]  # the model takes 24 tokens
    shutil.copytree(exported / "onnx", tmp_path / "onnx")
    facts = (tmp_path / "onnx" / "export.json").read_text()
    (tmp_path / "onnx" / "export.json").write_text(facts.replace(fingerprint(exported), "0" * 64))
    assert "belongs to another model" in bench(tmp_path, repeats=1)["left_out"][OURS]


def test_what_cannot_be_measured_is_refused(exported: Path) -> None:
    wrong: list[dict[str, Any]] = [{"repeats": 0}, {"repeats": True}, {"threads": 0}, {"threads": 1.5}]
    for options in [*wrong, {"shapes": ()}, {"shapes": ((1, 99),)}, {"shapes": ((4,),)}]:
        with pytest.raises(ValueError, match=r"give|takes"):
            bench(exported, **options)


def test_onnxruntime_gets_as_many_threads(exported: Path) -> None:
    session = Session(exported / "onnx" / MODEL, threads=2).session
    assert session.get_session_options().intra_op_num_threads == 2


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=32, n_layer=1, n_head=2, n_positions=24))


def resnet() -> PreTrainedModel:
    return ResNetForImageClassification(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    )


def mixtral() -> PreTrainedModel:
    sizes: dict[str, Any] = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 2}
    return MixtralForCausalLM(MixtralConfig(**sizes, **heads, max_position_embeddings=24))


PARTLY = QuantConfig(Grid(8), rules=(("*.down_proj", None),))
TIED = QuantConfig(Grid(8), rules=(("transformer.wte", QuantConfig.parse("w8a16e8")),))


@pytest.mark.parametrize(
    ("make", "config", "shape"),
    [
        (gpt2, QuantConfig(Grid(8)), (2, 9)),
        (gpt2, TIED, (2, 9)),
        (resnet, QuantConfig(Grid(8)), (2,)),
        (mixtral, QuantConfig(Grid(8)), (2, 9)),
        (mixtral, PARTLY, (2, 9)),
    ],
    ids=["conv1d", "tied", "convolutions", "experts", "some experts"],
)
def test_floats_compute_what_the_student_computes(
    make: Any, config: QuantConfig, shape: tuple[int, ...], tmp_path: Path
) -> None:
    student = quantize_model(make().eval(), config)
    student.save_pretrained(tmp_path)
    model = load(tmp_path)
    twin, inputs = floats_of(model), random_inputs(model, shape)
    assert not list(packed_layers(twin)) and "quantization_config" not in twin.config.to_dict()
    assert "quantization_config" in model.config.to_dict()
    with torch.no_grad():
        torch.testing.assert_close(twin(**inputs).logits, model(**inputs).logits, rtol=0, atol=1e-6)
