"""The parity report: it agrees with what is right, and names the layer where something is not."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

from exported import LAYER, TABLE, VOCABULARY, change, copied, damage, exported, tiny_bert
from zsaq.deploy import checks
from zsaq.deploy import comparison as compare
from zsaq.deploy.checks import verify_loaded, verify_onnx
from zsaq.deploy.comparison import TOLERANCE, difference, round_plainly
from zsaq.deploy.onnx.session import OnnxModel
from zsaq.deploy.onnx.write import MODEL, WEIGHTS
from zsaq.deploy.parity import batches_of, verify
from zsaq.deploy.runtimes import export
from zsaq.io.added import EXPORT, KEY, PARITY
from zsaq.io.checksums import MANIFEST, check_manifest, fingerprint
from zsaq.io.inputs import random_inputs
from zsaq.io.loading import load
from zsaq.io.saving import save
from zsaq.quant.config import Grid, QuantConfig
from zsaq.quant.model import quantize_model
from zsaq.quant.packed import packed_layers
from zsaq.quant.quantizer import Quantizer
from zsaq.quant.ranges import MinMax, Range, Static, input_range

__all__ = ["copied", "exported"]
LOADED, OURS, IN_BLOCKS = "zsaq torch", "zsaq onnx", "zsaq onnx, in blocks"


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
    monkeypatch.setattr("zsaq.deploy.onnx.captures.AFTER", {"GatherBlockQuantized": ()})
    report = graph_of(exported)
    assert len(report["layers_not_seen_alone"]) == len(list(names(load(exported)))) - 1
    monkeypatch.setattr("zsaq.deploy.onnx.captures.AFTER", {})
    assert graph_of(exported)["layers"] == {}


@pytest.mark.parametrize(
    "grid",
    [
        Grid(8, per="token"), Grid(4, per=8), Grid(2, per="token"), Grid(2, per="token", levels="half"),
        Grid(8, False, "token"), Grid(8, per="tensor"), Grid(8, False, "tensor"),
    ],
    ids=str,
)  # fmt: skip
def test_the_plain_rule_is_the_quantizers(grid: Grid) -> None:
    ranges = input_range(grid)
    x = torch.randn(3, 5, 16)
    if isinstance(ranges, Static):
        ranges.hold(torch.tensor([[-1.3]]), torch.tensor([[1.9]]))
    quantizer = Quantizer(grid, ranges)
    codes, values, steps = round_plainly(x, quantizer)
    assert torch.equal(codes, quantizer.codes(x)[0].float())
    assert difference(quantizer(x), values) < 1e-6
    assert steps.count_nonzero() == 0


def test_only_what_lies_at_a_tie_may_go_either_way() -> None:
    x = torch.tensor([[127.0, 2.5, 2.501, -3.5, 0.0]])
    _, _, steps = round_plainly(x, Quantizer(Grid(8, per="token"), MinMax()))
    assert steps.tolist() == [[0, 1, 0, 1, 0]]


def test_what_is_not_finite_or_shaped_otherwise_is_far() -> None:
    one = torch.ones(3)
    assert difference(one, one) == 0 and difference(torch.zeros(0), torch.zeros(0)) == 0
    assert difference(one * torch.nan, one) == difference(one, one / 0) == difference(one[:2], one) > 1e300


def test_inputs_that_the_model_does_not_take_are_refused(exported: Path) -> None:
    model = load(exported)
    for shape in ((1, 25), (2,), (0, 3)):
        with pytest.raises(ValueError, match=r"shape|takes"):
            random_inputs(model, shape)
    inputs = random_inputs(model, (4, 24), 3)
    assert set(inputs) == {"input_ids", "attention_mask", "token_type_ids"} and inputs["token_type_ids"].max() == 1
    assert all(torch.equal(value, random_inputs(model, (4, 24), 3)[name]) for name, value in inputs.items())
    batches = batches_of(model, 0)
    assert [tuple(b["input_ids"].shape) for b in batches] == [(1, 2), (1, 16), (3, 24)]
    assert batches[2]["attention_mask"].sum(1).tolist() == [24, 13, 13]


SMALL: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128
}  # fmt: skip
OTHERS = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=64, n_layer=2, n_head=2, n_positions=24)),
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(vocab_size=96, num_key_value_heads=1, max_position_embeddings=24, **SMALL)
    ),
    "roberta": lambda: RobertaForSequenceClassification(
        RobertaConfig(vocab_size=96, max_position_embeddings=40, **SMALL)
    ),
    "vit": lambda: ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **SMALL)),
    "bert": tiny_bert,
}
TIED = QuantConfig(Grid(4), Grid(8, per="token"), rules=(("transformer.wte", QuantConfig.parse("w4a8e4")),))
BLOCKS = QuantConfig(Grid(2, levels="half", per=32), Grid(8, per=32), embedding=Grid(4))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "config", "twin"),
    [
        ("bert", QuantConfig.parse("w4a8e8g32"), True), ("bert", QuantConfig.parse("w4a16"), True),
        ("bert", QuantConfig.parse("w3a8"), True), ("bert", BLOCKS, False),
        ("gpt2", QuantConfig.parse("w4a8"), False), ("gpt2", TIED, False),
        ("llama", QuantConfig.parse("w2a8"), True), ("roberta", QuantConfig.parse("w8a8"), True),
    ],
    ids=str,
)  # fmt: skip
def test_other_students_agree(name: str, config: QuantConfig, twin: bool, tmp_path: Path) -> None:
    student = quantize_model(OTHERS[name]().eval(), config)
    assert isinstance(student, PreTrainedModel)
    save(student, tmp_path / "student")
    for to in ("onnx", "compressed-tensors") if twin else ("onnx",):
        export(tmp_path / "student", to)  # type: ignore[arg-type]
    report = verify(tmp_path / "student")
    assert report["agrees"] and ("compressed-tensors" in report) == twin
    assert (tmp_path / "student" / MANIFEST).is_file() and load(tmp_path / "student")


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_a_student_without_exports_agrees_with_its_rule(name: str, tmp_path: Path) -> None:
    config = QuantConfig(
        Grid(4), Grid(8, False, "token"), rules=(("*.projection", QuantConfig(Grid(4))),)[: name == "vit"]
    )
    student = quantize_model(OTHERS[name]().eval().bfloat16(), config)
    assert isinstance(student, PreTrainedModel)
    student.save_pretrained(tmp_path)
    report, loaded = verify(tmp_path), load(tmp_path)
    assert report["agrees"] and set(report[LOADED]["layers"]) == {name for name, _ in packed_layers(loaded)}
    assert loaded.dtype == torch.bfloat16 and not (tmp_path / MANIFEST).exists()


@pytest.mark.parametrize(
    "facts", ["[]", "{}", '{"convolutions": []}', '{"convolutions": {}, "blocks": {"no.layer": ""}}', "{"]
)
def test_facts_that_tell_nothing_disagree(copied: Path, facts: str) -> None:
    known = f'{{"{KEY}": "{fingerprint(copied)}", ' if facts.startswith('{"') else ""
    (copied / "onnx" / EXPORT).write_text(known + facts.removeprefix("{") if known else facts)
    report = verify(copied, write=False)
    assert not report["agrees"] and "error" in report[IN_BLOCKS]


def test_an_export_of_another_student_disagrees_and_says_so(copied: Path) -> None:
    """Its file of weights is replaced beside a graph that runs as before."""
    student = quantize_model(tiny_bert(), QuantConfig.parse("w2a8e4"))
    with torch.no_grad():
        student.get_submodule("classifier").get_parameter("bias").add_(1)
    (copied / MANIFEST).unlink()
    student.save_pretrained(copied)
    report = verify(copied, write=False)
    assert report[LOADED]["agrees"] and not report["agrees"]
    for name in (OURS, IN_BLOCKS):
        assert "export.json belongs to another model" in report[name]["error"]
    with pytest.raises(ValueError, match=r"export\.json belongs to another model"):
        OnnxModel(copied)
