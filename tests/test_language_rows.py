import argparse
from pathlib import Path
from typing import Any

import pytest
import torch

import teachers
from language_toys import bpe
from recipes.benchmarks import language_peers
from recipes.benchmarks.language_models import measure
from teachers import folder_of
from zsaq.eval.perplexity import perplexity, tokenize
from zsaq.io.teacher import load_teacher
from zsaq.quant.model import quantize_model

TEXT = "the film is very good and the story was not bad " * 40
WINDOW, WINDOWS = 16, 4


def arguments(folder: Path, **given: Any) -> argparse.Namespace:
    (folder / "text.txt").write_text(TEXT)
    model = folder_of(folder / "llama", *teachers.objects("llama"))
    facts = {
        "model": str(model), "text": folder / "text.txt", "real": folder / "text.txt", "chat": None, "note": "",
        "window": WINDOW, "windows": WINDOWS, "seed": 0, "table": 8, "output_dir": folder, "tokens": 30,
    }  # fmt: skip
    return argparse.Namespace(**facts | given)


def test_a_row_holds_what_the_evaluation_says(tmp_path) -> None:
    args = arguments(tmp_path)
    found = [measure(args, "rtn:w4a16", []) for _ in range(2)]  # the second from kept states
    teacher, tokenizer = load_teacher(args.model), bpe()
    student = quantize_model(teacher, "w4a16")
    wanted = perplexity(student, tokenize(tokenizer, TEXT), WINDOW, teacher=teacher, max_windows=WINDOWS)
    for row in found:
        assert row["ppl"] == pytest.approx(wanted["perplexity"], abs=2e-3)
        assert row["kl_wiki"] == pytest.approx(wanted["kl"], abs=2e-5)
        assert row["kl_chat"] > 0 and row["peak_mb"] >= 0 and 4 < row["bits_per_weight"] < 32
        assert (row["model"], row["method"], row["config"]) == ("llama", "rtn", "w4a16")
    assert found[0]["kl_chat"] == found[1]["kl_chat"]


def test_the_model_itself_loses_nothing(tmp_path) -> None:
    row = measure(arguments(tmp_path), "float:16", [])
    assert row["kl_wiki"] == pytest.approx(0, abs=1e-6) and row["bits_per_weight"] == 16


def test_real_text_is_read_by_rows_that_say_so(tmp_path) -> None:
    row = measure(arguments(tmp_path), "gptq-real:w4a16", ["--calibration", "1"])
    assert row["config"] == "w4a16 --calibration 1"
    assert row["kl_wiki"] > 0


@pytest.mark.parametrize("table, bits", [(8, 8 + 16 / 32), (16, 16)])
def test_what_a_peer_leaves_in_floats_counts(table: int, bits: float) -> None:
    model = teachers.objects("llama")[0]
    whole = sum(p.numel() for p in model.parameters())
    words = model.get_input_embeddings().weight.clone()
    linear = sum(layer.weight.numel() for layer in language_peers.linears(model).values())
    assert not any("lm_head" in name for name in language_peers.linears(model))
    ends = 2 * words.numel()  # an untied head
    assert language_peers.unchanged(model, table) == (whole - linear - ends) * 16 + ends * bits
    changed = (model.get_input_embeddings().weight - words).abs().max()
    assert (0 < changed < 0.01) if table == 8 else changed == 0
    assert len(bpe()) == len(words)


@pytest.mark.parametrize("text", ["4", "g64", "4g", "w4g64", "4g6.4", ""])
def test_a_peers_configuration_is_bits_and_a_group(text: str) -> None:
    assert language_peers.bits_and_group("4g64") == (4, 64)
    with pytest.raises(ValueError, match="give bits and group"):
        language_peers.bits_and_group(text)


def test_a_hqq_row_is_near_the_model(tmp_path) -> None:
    pytest.importorskip("hqq")
    row = measure(arguments(tmp_path), "hqq:8g16", [])
    assert 0 < row["kl_wiki"] < 0.01 and torch.isfinite(torch.tensor(row["ppl"]))
