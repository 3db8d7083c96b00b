"""Static inputs in OpenVINO: the same codes in int8 products, layer by layer, and what it has no form for."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import ResNetConfig, ResNetForImageClassification

from test_export_onnx import VOCABULARY, bert, gpt2
from zsaq import Grid, QuantConfig, calibrate, export, load, quantize_model, save
from zsaq.deploy import timing
from zsaq.deploy.openvino.check import verify_openvino
from zsaq.deploy.parity import batches_of, verify
from zsaq.io.inputs import random_inputs
from zsaq.report.hub import contents

pytest.importorskip("onnx")
pytest.importorskip("openvino")
MAKERS = {"bert": bert, "gpt2": gpt2}


def saved(folder: Path, config: Any, kind: str = "bert") -> Path:
    torch.manual_seed(0)
    model = quantize_model(MAKERS[kind]().eval(), config)
    return save(calibrate(model, [random_inputs(model, (4, 12), seed) for seed in range(2)]), folder)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = saved(tmp_path_factory.mktemp("openvino") / "student", "w2a8se4")
    export(folder, "openvino")
    return folder


def test_every_layer_agrees_with_its_rule_and_the_answers_do(student: Path) -> None:
    report = verify(student, write=False)
    part = report["zsaq openvino"]
    assert report["agrees"] and part["agrees"], part
    assert len(part["layers"]) == 14 and not part["layers_not_seen_alone"]
    assert max(part["layers"].values()) < 1e-6 and "bert.embeddings.word_embeddings" in part["layers"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, config",
    [("bert", "w8a8s"), ("bert", "w4a4s"), ("bert", "w3a6s-s16"), ("bert", "w2a8s-ternary"), ("gpt2", "w4a8se8")],
)
def test_other_bits_agree_too(kind: str, config: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "student", config, kind)
    export(folder, "openvino")
    report = verify(folder, write=False)
    assert report["agrees"], report["zsaq openvino"]


def test_products_are_of_integers_and_weights_stay_codes(student: Path) -> None:
    from zsaq.deploy.openvino.session import Session

    kinds = [
        (node.get_rt_info()["layerType"].astype(str), node.get_rt_info()["runtimePrecision"].astype(str))
        for node in Session(student / "openvino").compiled.get_runtime_model().get_ops()
    ]
    assert kinds.count(("FullyConnected", "i8")) == 13
    floats = sum(p.numel() for n, p in load(student).named_parameters()) * 4
    assert (student / "openvino" / "openvino_model.bin").stat().st_size < floats + 13 * 64 * 128 + VOCABULARY * 64


@pytest.mark.parametrize("shape", [(1, 1), (2, 7), (5, 24)])
def test_batch_and_length_vary(student: Path, shape: tuple[int, int]) -> None:
    from zsaq.deploy.openvino.session import Session

    model = load(student)
    inputs = random_inputs(model, shape, 5)
    with torch.no_grad():
        want = model(**inputs).logits.numpy()
    got = Session(student / "openvino", threads=1).run({name: value.numpy() for name, value in inputs.items()})
    assert np.abs(got["logits"] - want).max() < 0.02 * np.abs(want).max() + 0.01
    with pytest.raises(ValueError, match=r"reads .*attention_mask.* is missing"):
        Session(student / "openvino").run({"input_ids": inputs["input_ids"].numpy()})


@pytest.mark.parametrize(
    "config, why",
    [
        ("w2a8", r"query: a scale for each token has no form in OpenVINO.*as w2a8s says"),
        ("w4a8b32", r"a scale for each block of 32 has no form.*as w2a8s says"),
        ("w4a16", r"inputs in floats have no product.*as w2a8s says"),
        ("w4a8sg32", r"groups of weights have no product.*as w2a8s says"),
        (QuantConfig(Grid(4, symmetric=False), Grid(8, per="tensor")), r"asymmetric weights have no product.*w2a8s"),
        (QuantConfig(Grid(4), Grid(8, symmetric=False, per="tensor")), r"symmetric=False.* for inputs.*w2a8s"),
        (QuantConfig(Grid(2), Grid(2, per="tensor", levels="half")), r"levels='half'.* for inputs.*w2a8s"),
    ],
)
def test_what_it_has_no_form_for_is_refused_before_a_folder_appears(config: Any, why: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "student", config)
    with pytest.raises(ValueError, match=why) as told:
        export(folder, "openvino")
    assert "\n" not in str(told.value) and not (folder / "openvino").exists()


def test_convolutions_are_refused(tmp_path: Path) -> None:
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    teacher = ResNetForImageClassification(config).eval()
    static = quantize_model(teacher, QuantConfig(Grid(4), Grid(8, per="tensor")))
    folder = save(calibrate(static, [{"pixel_values": torch.randn(2, 3, 32, 32)}]), tmp_path / "student")
    with pytest.raises(ValueError, match=r"PackedConv2d is not written for OpenVINO: export --to onnx"):
        export(folder, "openvino")


@pytest.mark.parametrize("layers", [None, {}, {"bert.nobody": {"input": "a", "output": "b"}}, {"bert.pooler.dense": 3}])
def test_an_export_that_says_nonsense_of_itself_disagrees(layers: Any, student: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "student"
    shutil.copytree(student, folder)
    facts = json.loads((folder / "openvino" / "export.json").read_text())
    (folder / "openvino" / "export.json").write_text(json.dumps(facts | {"layers": layers}))
    part = verify(folder, write=False)["zsaq openvino"]
    assert not part["agrees"]


def test_a_code_that_is_not_the_student_s_is_found(student: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "student"
    shutil.copytree(student, folder)
    file = folder / "openvino" / "openvino_model.bin"
    data = np.frombuffer(file.read_bytes(), np.int8).copy()
    codes: Any = load(student).get_submodule("bert.encoder.layer.1.output.dense")
    row = (2 * torch.tensor(codes.grid.values)).to(torch.int8)[
        codes.codes[0, :8].long()[:, None] >> torch.tensor([0, 2, 4, 6]) & 3
    ]
    place = data.tobytes().find(row.flatten().numpy().tobytes())
    assert place > 0
    data[place] = -data[place]
    file.write_bytes(data.tobytes())
    model = load(folder)
    found = verify_openvino(model, folder, batches_of(model, 0))
    assert not found["agrees"] and found["disagree"] == ["bert.encoder.layer.1.output.dense"]


def test_it_is_timed_and_published(student: Path, tmp_path: Path) -> None:
    model = load(student)
    run, size, _ = timing.openvino(timing.Bench(model, student, tmp_path, 1))
    assert np.isfinite(run(random_inputs(model, (1, 4)))["logits"]).all() and size > 50_000
    assert {"openvino/openvino_model.xml", "openvino/openvino_model.bin"} <= set(contents(student))
    with pytest.raises(ValueError, match=r"export .* --to openvino"):
        timing.openvino(timing.Bench(model, tmp_path, tmp_path, 1))
