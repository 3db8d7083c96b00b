"""An export at work: the student's logits, from the graph of its own rule or from the blocks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, T5Config, T5ForConditionalGeneration

from exported import VOCABULARY, copied, exported
from zsaq.deploy.onnx.session import OnnxModel
from zsaq.deploy.runtimes import export
from zsaq.io.added import EXPORT
from zsaq.io.loading import load
from zsaq.io.saving import save
from zsaq.quant.config import QuantConfig
from zsaq.quant.model import quantize_model

__all__ = ["copied", "exported"]

IDS = torch.arange(18).reshape(2, 9) * 7 % VOCABULARY


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def test_both_graphs_give_the_students_logits(exported: Path) -> None:
    model = load(exported)
    mask = torch.ones_like(IDS)
    mask[1, 5:] = 0
    with torch.no_grad():
        want = model(IDS, attention_mask=mask).logits
        whole = model(IDS).logits
    exact = OnnxModel(exported, threads=1)
    assert exact.short == 0
    assert far(exact(input_ids=IDS, attention_mask=mask), want) < 0.01  # a rounding tie apart at the most
    assert far(exact(input_ids=IDS), whole) < 0.01
    both = OnnxModel(exported / "onnx", threads=1, same_rule=False)
    assert both.short in (0, 1, 4, 16)  # the model takes 24 tokens
    both.short = IDS.numel()
    assert 0 < far(both(input_ids=IDS, attention_mask=mask), want) < 0.1  # finer inputs, not the same ones


def test_a_folder_without_an_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="zsaq export"):
        OnnxModel(tmp_path)


def test_inputs_are_taken_as_what_they_stand_for(exported: Path) -> None:
    model = OnnxModel(exported, threads=1)
    mask = torch.ones_like(IDS)
    mask[1, 5:] = 0
    want = model(input_ids=IDS, attention_mask=mask)
    assert torch.equal(model(input_ids=IDS.int(), attention_mask=mask.bool(), token_type_ids=None), want)
    assert torch.equal(model(input_ids=IDS.tolist(), attention_mask=mask.numpy().astype("uint8")), want)
    assert torch.equal(model(input_ids=IDS, decoder_attention_mask=torch.ones_like(IDS)), model(input_ids=IDS))


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "misspelled": ({"attention_maks": IDS}, "reads input_ids.*; attention_maks is none of them: leave it out"),
    "not in the graph": ({"position_ids": IDS}, r"position_ids is none of them.*zsaq\.load"),
    "hides something": ({"decoder_attention_mask": 0 * IDS}, "decoder_attention_mask is none of them"),
    "beyond the table": ({"input_ids": IDS + 100}, f"input_ids holds 2.., and the model knows 0 to {VOCABULARY - 1}"),
    "a label": ({"input_ids": IDS - 100}, "input_ids holds -100"),
    "types": ({"token_type_ids": 0 * IDS + 2}, "token_type_ids holds 2, and the model knows 0 to 1"),
    "too long": (
        {"input_ids": IDS.repeat(1, 3)},
        "input_ids has 27 tokens a row; the model has positions for 24: cut them",
    ),
    "empty": ({"input_ids": IDS[:, :0]}, "input_ids has 0 tokens a row"),
    "a shorter mask": ({"attention_mask": 0 * IDS[:, 1:]}, "one length; attention_mask has length 8 .* have 9"),
    "a mask for one": ({"attention_mask": 0 * IDS[:1]}, "one batch; attention_mask has batch 1 .* have 2"),
    "floats": ({"input_ids": IDS.float()}, "takes input_ids of int64; these are float32"),
    "ragged": ({"input_ids": [[1, 2], [3]]}, "input_ids is no array: .* pad them"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_the_student_would_answer_otherwise_is_refused(case: str, exported: Path) -> None:
    inputs, message = WRONG[case]
    with pytest.raises(ValueError, match=message) as error:
        OnnxModel(exported, threads=1)(**{"input_ids": IDS} | inputs)
    assert "export" not in str(error.value).removeprefix(str(exported)) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "facts", [{"tokens": "24"}, {"positions": None}, {"below": None}, {"below": {"input_ids": 0}}, {"below": {}}]
)
def test_an_export_that_does_not_tell_its_tokens_is_refused(facts: dict[str, Any], copied: Path) -> None:
    file = copied / "onnx" / EXPORT
    file.write_text(json.dumps(json.loads(file.read_text()) | facts))
    with pytest.raises(ValueError, match="does not tell which tokens its graph takes: export the student again"):
        OnnxModel(copied)


def test_texts_are_not_refused_by_a_number_of_pretraining(tmp_path: Path) -> None:
    pretrained: Any = {"seq_length": 16}
    config = BloomConfig(vocab_size=96, hidden_size=32, n_layer=1, n_head=2, **pretrained)
    folder = save(quantize_model(BloomForCausalLM(config).eval(), QuantConfig.parse("w8a16")), tmp_path / "bloom")
    export(folder, "onnx")
    ids = torch.arange(24)[None] * 7 % 96
    with torch.no_grad():
        want = load(folder)(ids).logits
    assert far(OnnxModel(folder, threads=1)(input_ids=ids), want) < 1e-4


def test_what_is_timed_is_given_to_the_decoder_too(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = OnnxModel(exported, threads=1), []
    model.exact.shapes["decoder_input_ids"], model.exact.types["decoder_input_ids"] = [2, 2], "tensor(int64)"
    monkeypatch.setattr(model.exact, "run", lambda inputs: [*map(seen.append, [inputs]), np.zeros(1)][1:])
    model.last = 7
    assert model._crossing([1, 4]) in (0, 1, 4)
    assert all(inputs["input_ids"][0, -1] == 7 for inputs in seen)
    assert all(set(inputs) == {*model.exact.shapes} for inputs in seen)


@pytest.mark.slow
def test_the_second_graph_of_an_encoder_decoder_is_timed_too(tmp_path: Path) -> None:
    pretrained: Any = {"n_positions": 4}
    config = T5Config(vocab_size=96, d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2, **pretrained)
    folder = save(quantize_model(T5ForConditionalGeneration(config).eval(), QuantConfig.parse("w4a8")), tmp_path / "t5")
    export(folder, "onnx")
    model = OnnxModel(folder, threads=1, same_rule=False)
    assert model.short in (0, 1, 4, 16, 64, 256) and model.blocks is not None
    ids = torch.tensor([[5, 95, 1]])
    assert model(input_ids=ids, decoder_input_ids=ids[:, :2])["logits"].shape == (1, 2, 96)
    assert model(input_ids=ids.repeat(1, 3), decoder_input_ids=ids.repeat(1, 2))["logits"].shape == (1, 6, 96)
    with pytest.raises(ValueError, match="decoder_input_ids holds 96"):
        model(input_ids=ids, decoder_input_ids=ids + 1)
