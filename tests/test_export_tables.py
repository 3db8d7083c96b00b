"""Token tables in compressed-tensors: a byte a code where stock transformers reads that, floats where not, told."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Gemma3TextConfig,
    Gemma3TextModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from students import one_thread
from zsaq.deploy.parity import verify
from zsaq.deploy.runtimes import export
from zsaq.io.loading import load
from zsaq.io.saving import save
from zsaq.quant.config import Grid, QuantConfig
from zsaq.quant.model import quantize_model
from zsaq.quant.packed import PackedEmbedding, packed_layers

__all__ = ["one_thread"]
SIZES: dict[str, Any] = {
    "vocab_size": 200, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "max_position_embeddings": 24,
}  # fmt: skip
GEMMA: dict[str, Any] = {"num_key_value_heads": 1, "head_dim": 16, "bos_token_id": 0, "eos_token_id": 1}


def bert() -> PreTrainedModel:
    return BertForSequenceClassification(BertConfig(**SIZES))


def half() -> PreTrainedModel:
    return bert().bfloat16()


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=1))


def tied() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=1, tie_word_embeddings=True)).bfloat16()


def masked() -> PreTrainedModel:
    return RobertaForMaskedLM(RobertaConfig(**SIZES))


def scaled() -> PreTrainedModel:
    return Gemma3TextModel(Gemma3TextConfig(**SIZES, **GEMMA))


def table(grid: Grid) -> QuantConfig:
    return QuantConfig(Grid(4), embedding=grid)


PARSE = QuantConfig.parse
CASES: dict[str, tuple[Callable[[], PreTrainedModel], QuantConfig, bool]] = {
    "bytes": (bert, PARSE("w8a8e8"), True),
    "four bits": (bert, PARSE("w4a8e4"), True),
    "groups": (bert, table(Grid(8, per=16)), True),
    "half levels": (bert, table(Grid(2, levels="half")), True),
    "asymmetric": (bert, table(Grid(4, symmetric=False)), True),
    "bfloat16": (half, PARSE("w4a16e8"), True),
    "nine bits": (bert, table(Grid(8, symmetric=False)), False),
    "levels": (bert, table(Grid(4, levels="nf4")), False),
    "generates": (llama, PARSE("w4a16e8"), False),
    "tied": (tied, PARSE("w4a16e8h8"), False),
    "shared": (masked, PARSE("w4a16e8h8"), False),
    "scaled": (scaled, PARSE("w4a16e8"), False),
}


@pytest.mark.parametrize("case", CASES)
def test_tables_keep_their_codes_where_the_stock_loader_reads_them(case: str, tmp_path: Path) -> None:
    make, config, kept = CASES[case]
    torch.manual_seed(0)
    folder = save(quantize_model(make().eval(), config), tmp_path / "student")
    facts = export(folder, "compressed-tensors")
    ((name, layer),) = [(n, m) for n, m in packed_layers(load(folder)) if isinstance(m, PackedEmbedding)]
    stored = load_file(folder / "compressed-tensors" / "model.safetensors")[f"{name}.weight"]
    assert facts["tables"] == kept and (stored.dtype == torch.int8) == kept
    assert facts["student_bytes"] == (folder / "model.safetensors").stat().st_size
    grown = [change for change in facts["changed"] if change.startswith(f"{name}: stored in floats")]
    assert len(grown) == (not kept) and all("MB where the student has 0.00" in change for change in grown)
    assert any("take a byte each" in change for change in facts["changed"]) == (kept and layer.grid.bits < 8)
    if kept:
        assert facts["bytes"] - facts["student_bytes"] < 7000  # the rest is in the file of the student too
        said = json.loads((folder / "compressed-tensors" / "config.json").read_text())["quantization_config"]
        *linear, last = [group["targets"] for group in said["config_groups"].values()]
        assert last == [name] and (linear == [["Linear"]]) == (len(linear) == 1)
    else:
        assert torch.equal(stored, layer.weight)
    report = verify(folder, write=False)
    assert report["agrees"], report["compressed-tensors"]


def test_scales_are_told_to_be_rounded_only_where_they_are(tmp_path: Path) -> None:
    changed = {}
    for text in ("w4a16", "w4a16-s16"):
        torch.manual_seed(0)
        folder = save(quantize_model(llama().half().eval(), PARSE(text)), tmp_path / text)
        changed[text] = " ".join(export(folder, "compressed-tensors")["changed"])
        assert verify(folder, write=False)["agrees"]
    assert "rounded to torch.float16" in changed["w4a16"] and "rounded" not in changed["w4a16-s16"]
