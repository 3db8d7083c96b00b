"""What transformers says to a saved model in a process that has never seen zsaq: an error, and what to do."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from students import CONFIGS, bits, student_of
from vision_toys import resnet
from zsaq import Grid, QuantConfig, load, quantize_model
from zsaq.quant.guard import NOTE, decoys

TABLE = QuantConfig(Grid(4), Grid(8, per="token"), rules=(("transformer.wte", QuantConfig.parse("w3a8")),))
STUDENTS: dict[str, Callable[[], Any]] = {
    "bert": lambda: student_of("bert", CONFIGS["w2a8"]),
    "gpt2": lambda: student_of("gpt2", TABLE),
    "resnet": lambda: quantize_model(resnet(), QuantConfig(Grid(4))),
}
# Every way in, in one process: starting it takes most of the time.
FAMILIES = ["bert", *(pytest.param(family, marks=pytest.mark.slow) for family in ("gpt2", "resnet"))]
STRANGER = """
import sys, traceback
from transformers import (AutoModel, AutoModelForCausalLM, AutoModelForImageClassification, AutoModelForMaskedLM,
    AutoModelForSequenceClassification, BertForSequenceClassification, GPT2LMHeadModel, ResNetForImageClassification,
    pipeline)
ways = {
    "bert": (AutoModel.from_pretrained, AutoModelForSequenceClassification.from_pretrained,
        AutoModelForMaskedLM.from_pretrained, BertForSequenceClassification.from_pretrained,
        lambda folder: pipeline("text-classification", folder)),
    "gpt2": (AutoModel.from_pretrained, AutoModelForCausalLM.from_pretrained, GPT2LMHeadModel.from_pretrained,
        lambda folder: pipeline("text-generation", folder)),
    "resnet": (AutoModel.from_pretrained, AutoModelForImageClassification.from_pretrained,
        ResNetForImageClassification.from_pretrained, lambda folder: pipeline("image-classification", folder)),
}
assert "zsaq" not in sys.modules
for read in ways[sys.argv[2]]:
    print("BEGIN", file=sys.stderr, flush=True)
    try:
        read(sys.argv[1])
    except Exception:
        traceback.print_exc()
    else:
        print("LOADED", file=sys.stderr, flush=True)
"""


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stranger_gets_an_error_and_not_random_weights(family: str, tmp_path: Path) -> None:
    STUDENTS[family]().save_pretrained(tmp_path)
    stderr = subprocess.run(
        [sys.executable, "-I", "-c", STRANGER, str(tmp_path), family],
        capture_output=True,
        text=True,
        env={**os.environ, "TRANSFORMERS_VERBOSITY": "warning", "HF_HUB_OFFLINE": "1"},
        timeout=300,
    ).stderr
    reports = stderr.split("BEGIN\n")[1:]
    assert len(reports) == (5 if family == "bert" else 4), stderr[-2000:]
    for report in reports:
        assert "LOADED" not in report, report
        assert NOTE in report and "MISMATCH" in report and "RuntimeError" in report, report


def test_we_pass_over_the_decoys_without_a_word(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    student = STUDENTS["gpt2"]()
    student.save_pretrained(tmp_path / "new")
    tensors = load_file(tmp_path / "new" / "model.safetensors")
    fake = [key for key in tensors if key == NOTE or tensors[key].shape == (1,)]
    assert NOTE in fake and "transformer.wte.weight" in fake and "lm_head.weight" not in tensors
    assert sum(tensors.pop(key).nbytes for key in fake) == len(fake) == 10
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_bytes((tmp_path / "new" / "config.json").read_bytes())
    save_file(tensors, tmp_path / "old" / "model.safetensors", metadata={"format": "pt"})
    capfd.readouterr()
    for folder in ("new", "old"):  # what was saved before there were decoys loads as ever
        assert torch.equal(bits(load(tmp_path / folder)), bits(student))
        assert "UNEXPECTED" not in capfd.readouterr().err
    load(tmp_path / "old").save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == {*tensors, *fake}


@pytest.mark.parametrize("decoy", [torch.zeros(2, dtype=torch.uint8), torch.zeros(1), torch.zeros(32, 32)])
def test_only_a_decoy_passes_for_one(tmp_path: Path, decoy: torch.Tensor) -> None:
    STUDENTS["bert"]().save_pretrained(tmp_path)
    tensors = {**load_file(tmp_path / "model.safetensors"), "bert.pooler.dense.weight": decoy}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"bert\.pooler\.dense: its plan knows no tensors"):
        load(tmp_path)
    assert [tuple(value.shape) for value in decoys(["a", "b"]).values()] == [(1,)] * 3
