"""Layers that a graph holds once and reads at several places are checked at each of them."""

from pathlib import Path
from typing import Any

import pytest
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BartConfig,
    BartForSequenceClassification,
    PreTrainedModel,
)

from zsaq import QuantConfig, export, load, quantize_model, save
from zsaq.deploy.checks import verify_onnx
from zsaq.deploy.onnx.captures import Captures
from zsaq.deploy.parity import batches_of
from zsaq.quant.packed import packed_layers


def albert() -> PreTrainedModel:
    return AlbertForSequenceClassification(
        AlbertConfig(
            vocab_size=96, embedding_size=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=24,
        )
    )  # fmt: skip


def bart() -> PreTrainedModel:
    sides: Any = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in {"layers": 1, "attention_heads": 2, "ffn_dim": 32}.items()
    }
    return BartForSequenceClassification(BartConfig(vocab_size=96, d_model=32, max_position_embeddings=24, **sides))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "twice"),
    [(albert, "albert.encoder.albert_layer_groups.0.albert_layers.0.ffn"), (bart, "model.decoder.embed_tokens")],
)
def test_every_call_is_seen(make: Any, twice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = quantize_model(make().eval(), QuantConfig.parse("w4a8e4"))
    assert isinstance(student, PreTrainedModel)
    export(save(student, tmp_path / "student"), "onnx")
    model = load(tmp_path / "student")
    batches = batches_of(model, 0)
    report = verify_onnx(model, tmp_path / "student", batches)
    assert report["agrees"] and report["layers_not_seen_alone"] == []
    assert report["layers"].keys() == {name for name, _ in packed_layers(model)} - set(report["layers_never_called"])

    run = Captures.run

    def wrong(self: Captures, inputs: Any) -> Any:
        deployed, answers, seen = run(self, inputs)
        x, y = seen[twice][-1]
        seen[twice][-1] = x, y + 1
        return deployed, answers, seen

    monkeypatch.setattr(Captures, "run", wrong)
    report = verify_onnx(model, tmp_path / "student", batches)
    assert not report["agrees"] and twice in report["disagree"]
