"""An export at work: the student's logits, from the graph of its own rule or from the blocks."""

from pathlib import Path

import pytest
import torch

from exported import VOCABULARY, exported  # noqa: F401 (a fixture)
from zsaq.deploy.onnx.session import OnnxModel
from zsaq.io.loading import load

IDS = torch.arange(18).reshape(2, 9) * 7 % VOCABULARY


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def test_both_graphs_give_the_students_logits(exported: Path) -> None:  # noqa: F811
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
