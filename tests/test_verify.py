"""The parity report: it agrees with what is right, and names the layer where something is not."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from exported import IN_BLOCKS, LAYER, LOADED, OURS, TABLE, VOCABULARY, change, copied, damage, exported, tiny_bert
from zsaq.deploy import checks
from zsaq.deploy import comparison as compare
from zsaq.deploy.checks import verify_loaded, verify_onnx
from zsaq.deploy.comparison import TOLERANCE
from zsaq.deploy.onnx.session import OnnxModel
from zsaq.deploy.onnx.write import MODEL, WEIGHTS
from zsaq.deploy.parity import batches_of, verify
from zsaq.io.added import EXPORT, KEY, PARITY
from zsaq.io.checksums import MANIFEST, check_manifest, fingerprint
from zsaq.io.loading import load
from zsaq.quant.config import Grid, QuantConfig
from zsaq.quant.model import quantize_model
from zsaq.quant.packed import packed_layers
from zsaq.quant.quantizer import Quantizer
from zsaq.quant.ranges import Range

__all__ = ["copied", "exported"]


def test_a_good_folder_agrees_in_every_layer_and_loads_again(copied: Path) -> None:
    report = verify(copied)
    names = {name for name, _ in packed_layers(load(copied))}
    assert report["agrees"] and len(names) == 14
    for part in (LOADED, OURS, IN_BLOCKS):
        assert set(report[part]["layers"]) == names and set(report[part]["between"]) == {*names, "logits"}
        assert max(*report[part]["layers"].values(), *report[part]["between"].values()) <= TOLERANCE
        assert (
            report[part]["layers_not_seen_alone"]
            == report[part]["layers_never_called"]
            == report[part]["disagree"]
            == []
        )
        assert report[part]["end_to_end"]["codes"] > 0
    assert report[OURS]["worst"]["between"]["relative"] > 0 == report[LOADED]["worst"]["between"]["relative"]
    assert report[LOADED]["bit_equal_when_loaded_again"] is True
    written = json.loads((copied / PARITY).read_text())
    assert written.pop(KEY) == fingerprint(copied) and written == report
    assert PARITY not in check_manifest(copied)["files"]
    assert not [p for p in copied.rglob(".*") if p.is_file()]
    load(copied)


def test_it_can_be_run_again_without_writing(copied: Path) -> None:
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    first, second = (verify(copied, seed=1, write=False) for _ in range(2))
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before
    assert first[OURS] == second[OURS] and first["agrees"]


def graph_of(folder: Path) -> dict[str, Any]:
    model = load(folder, dtype=torch.float32)
    report = verify_onnx(model, folder, batches_of(model, 0))
    assert not report["agrees"]
    return report


def test_damaged_codes_are_named(copied: Path) -> None:
    damage(copied, f"model.{LAYER}.stored", 100)
    report = graph_of(copied)
    assert report["disagree"] == [LAYER] and report["worst"]["alone"]["at"] == LAYER


def test_damage_in_a_row_of_the_table_that_no_input_reaches_is_named(copied: Path) -> None:
    used = torch.cat([batch["input_ids"].flatten() for batch in batches_of(load(copied), 0)])
    row = next(row for row in range(VOCABULARY) if row not in used)
    damage(copied, f"model.{TABLE}.stored", row * 32)
    assert graph_of(copied)["disagree"] == [TABLE]


def test_a_changed_scale_is_named(copied: Path) -> None:
    def by(scale: np.ndarray) -> np.ndarray:
        scale.flat[5] *= np.float32(1.01)
        return scale

    change(copied, f"{LAYER}.weight_scale", by)
    assert graph_of(copied)["disagree"] == [LAYER]


def test_a_changed_float_part_is_found_between_layers(copied: Path) -> None:
    change(copied, "bert.encoder.layer.0.output.LayerNorm.weight", lambda weight: weight * np.float32(1.001))
    report = graph_of(copied)
    assert "bert.encoder.layer.1.attention.self.query" in report["disagree"]
    assert max(report["layers"].values()) <= TOLERANCE < report["worst"]["between"]["relative"]


def test_a_scale_that_is_no_number_disagrees_in_valid_json(copied: Path) -> None:
    change(copied, f"{LAYER}.weight_scale", lambda scale: scale * np.float32("nan"))
    report = verify(copied)
    assert not report["agrees"] and report[LOADED]["agrees"] and LAYER in report[OURS]["disagree"]
    written = json.loads((copied / PARITY).read_text(), parse_constant=pytest.fail)
    assert written == report | {KEY: written[KEY]}


def test_a_graph_that_does_not_open_disagrees(copied: Path) -> None:
    (copied / "onnx" / WEIGHTS).write_bytes(b"")
    report = verify(copied, write=False)
    assert not report["agrees"] and "does not run" in report[OURS]["error"]
    (copied / "onnx" / MODEL).unlink()
    assert "does not run" in verify(copied, write=False)[OURS]["error"]


class Stretched(Range):
    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, float]:
        return x.detach().abs().amax(-1, keepdim=True) / 127.5, grid.zero


def test_another_rule_in_the_loaded_model_is_named(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, again = load(exported), load(exported)
    for student in (model, again):
        quantizer = student.get_submodule(LAYER).input_quantizer
        assert isinstance(quantizer, Quantizer)
        quantizer.ranges = Stretched()
    monkeypatch.setattr(checks, "load", lambda *_, **__: again)
    report = verify_loaded(model, exported, batches_of(model, 0))
    assert not report["agrees"] and report["disagree"] == [LAYER]


def test_a_second_load_that_differs_is_told(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, again = load(exported), load(exported)
    with torch.no_grad():
        again.get_submodule("classifier").get_parameter("bias").add_(1e-6)
    monkeypatch.setattr(checks, "load", lambda *_, **__: again)
    report = verify_loaded(model, exported, batches_of(model, 0))
    assert not report["agrees"] and not report["bit_equal_when_loaded_again"] and report["disagree"] == []


def test_a_layer_that_is_not_seen_does_not_pass_in_silence(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = compare.packed_layers
    monkeypatch.setattr("zsaq.deploy.onnx.places.AFTER", {"GatherBlockQuantized": ()})
    report = graph_of(exported)
    assert len(report["layers_not_seen_alone"]) == len(list(names(load(exported)))) - 1
    monkeypatch.setattr("zsaq.deploy.onnx.places.AFTER", {})
    assert graph_of(exported)["layers"] == {}


@pytest.mark.parametrize(
    "facts", ["[]", "{}", '{"convolutions": []}', '{"convolutions": {}, "blocks": {"no.layer": ""}}', "{"]
)
def test_facts_that_tell_nothing_disagree(copied: Path, facts: str) -> None:
    known = f'{{"{KEY}": "{fingerprint(copied)}", ' if facts.startswith('{"') else ""
    (copied / "onnx" / EXPORT).write_text(known + facts.removeprefix("{") if known else facts)
    report = verify(copied, write=False)
    assert not report["agrees"] and "error" in report[IN_BLOCKS]


def test_an_export_where_no_runtime_looks_is_told_and_does_not_agree(copied: Path) -> None:
    assert verify(copied, write=False)["not_checked"] == []
    shutil.copytree(copied, copied / "other")  # a student in its own right
    for place in ("mine", "further/off"):
        shutil.copytree(copied / "onnx", copied / place)
    report = verify(copied, write=False)
    assert not report["agrees"] and report["not_checked"] == ["further/off", "mine"] and report[OURS]["agrees"]


def test_exports_that_a_writer_has_not_finished_are_none(copied: Path) -> None:
    for place in (".gptq.1234abcd.partial", ".onnx.1234abcd.former", "further/.off.1234abcd.partial/onnx"):
        shutil.copytree(copied / "onnx", copied / place)
    report = verify(copied, write=False)
    assert report["agrees"] and report["not_checked"] == []


def test_a_file_beside_the_graph_that_was_not_written_disagrees(copied: Path) -> None:
    (copied / "onnx" / "other.onnx").write_bytes(b"")
    report = verify(copied, write=False)
    assert not report["agrees"] and "other.onnx is foreign" in report[OURS]["error"] and report[LOADED]["agrees"]


def test_an_export_of_another_student_disagrees_and_says_so(copied: Path) -> None:
    """Its file of weights is replaced, and the graph, which runs as before, put back beside it."""
    student = quantize_model(tiny_bert(), QuantConfig.parse("w2a8e4"))
    with torch.no_grad():
        student.get_submodule("classifier").get_parameter("bias").add_(1)
    (copied / MANIFEST).unlink()
    os.rename(copied / "onnx", copied.parent / "onnx")
    student.save_pretrained(copied)
    os.rename(copied.parent / "onnx", copied / "onnx")
    report = verify(copied, write=False)
    assert report[LOADED]["agrees"] and not report["agrees"]
    for name in (OURS, IN_BLOCKS):
        assert "export.json belongs to another model" in report[name]["error"]
    with pytest.raises(ValueError, match=r"export\.json belongs to another model"):
        OnnxModel(copied)
