"""Tiny saved students with an ONNX export, made once for all test files: a trace takes seconds."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from zsaq.deploy.runtimes import export
from zsaq.io.saving import save
from zsaq.quant.config import QuantConfig
from zsaq.quant.model import quantize_model

VOCABULARY = 200
LAYER = "bert.encoder.layer.1.intermediate.dense"
# The parts of a report of parity.
LOADED, OURS, IN_BLOCKS = "zsaq torch", "zsaq onnx", "zsaq onnx, in blocks"
TABLE = "bert.embeddings.word_embeddings"


def tiny_bert() -> Any:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
        max_position_embeddings=24,
    )  # fmt: skip
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved student W2A8 with a 4-bit table and its graph. Nobody may change it: see `copied`."""
    folder = tmp_path_factory.getbasetemp() / "exported"
    if not folder.exists():
        save(quantize_model(tiny_bert(), QuantConfig.parse("w2a8e4")), folder)
        export(folder, "onnx")
    return folder


@pytest.fixture
def copied(exported: Path, tmp_path: Path) -> Path:
    return shutil.copytree(exported, tmp_path / "copied")


def damage(folder: Path, name: str, at: int, count: int = 8) -> None:
    """Flip bytes of a tensor in the file of weights, where the graph says that they lie."""
    proto: Any = onnx.load(str(folder / "onnx/model.onnx"), load_external_data=False)
    (tensor,) = [t for t in proto.graph.initializer if t.name == name]
    where = {entry.key: entry.value for entry in tensor.external_data}
    assert at + count <= int(where["length"])
    with (folder / "onnx" / where["location"]).open("r+b") as file:
        file.seek(int(where["offset"]) + at)
        old = file.read(count)
        file.seek(int(where["offset"]) + at)
        file.write(bytes(byte ^ 0xFF for byte in old))


def change(folder: Path, name: str, by: Callable[[Any], Any]) -> None:
    """Replace a small tensor of the graph by what `by` makes of it."""
    path = folder / "onnx/model.onnx"
    proto: Any = onnx.load(str(path), load_external_data=False)
    (tensor,) = [t for t in proto.graph.initializer if t.name.endswith(name)]
    tensor.CopyFrom(onnx.numpy_helper.from_array(by(onnx.numpy_helper.to_array(tensor).copy()), tensor.name))
    onnx.save(proto, str(path))
