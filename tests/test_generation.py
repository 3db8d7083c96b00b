"""Generation in `zsaq bench`: what is counted, for which models, and what a table of it holds."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from exported import tiny_bert
from zsaq.deploy import bench as page
from zsaq.deploy import rounds
from zsaq.deploy.bench import bench
from zsaq.deploy.generation import generates, measure, prompt_for, torch_write
from zsaq.deploy.runtimes import Runtime
from zsaq.deploy.timing import BASE, Timed
from zsaq.io.added import BENCH, read_added
from zsaq.io.checksums import fingerprint
from zsaq.io.saving import save
from zsaq.quant.config import QuantConfig
from zsaq.quant.model import quantize_model
from zsaq.report.speed import generations


def llama(**more: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 24}
    return LlamaForCausalLM(LlamaConfig(**(sizes | heads | more))).eval()


def test_generate_ticks_once_a_token_and_writes_the_likeliest(recwarn: pytest.WarningsRecorder) -> None:
    model = llama(max_position_embeddings=64)
    model.generation_config.update(do_sample=True, temperature=0.1, max_length=5, eos_token_id=list(range(96)))
    prompt, count = prompt_for(model)
    assert len(prompt) == 32 and count == 32
    ticks: list[int] = []
    answer = torch_write(model)(prompt, count, lambda: ticks.append(1))
    assert len(ticks) == count and answer.shape == (1, 64) and answer[0, :32].tolist() == prompt
    with torch.no_grad():
        logits = model(input_ids=answer[:, :-1]).logits
    assert torch.equal(logits[:, 31:].argmax(-1), answer[:, 32:])
    first, rate = measure(torch_write(model), (prompt, count))
    assert first > 0 and rate > 0 and not recwarn.list


@pytest.mark.parametrize("said", [0, 1, 4])
def test_who_writes_another_number_of_tokens_is_told(said: int) -> None:
    def write(prompt: list[int], count: int, tick: Callable[[], None]) -> None:
        for _ in range(said):
            tick()

    with pytest.raises(ValueError, match=f"wrote {said} tokens where 3"):
        measure(write, ([1], 3))


def test_models_that_generate_and_how_much() -> None:
    small: dict[str, Any] = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    t5 = T5Config(vocab_size=96, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    others = [tiny_bert(), BertForMaskedLM(BertConfig(**small)), T5ForConditionalGeneration(t5)]
    assert not any(map(generates, others))
    assert not generates(llama(max_position_embeddings=2))
    for limit, asked in ((3, (1, 2)), (24, (12, 12)), (50, (25, 25)), (100, (32, 32))):
        model = llama(max_position_embeddings=limit)
        prompt, count = prompt_for(model)
        assert generates(model) and (len(prompt), count) == asked


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(quantize_model(llama(), QuantConfig.parse("w4a8e8")), tmp_path_factory.mktemp("llama") / "student")


def refuse(bench: Any) -> Timed:
    raise AssertionError("a peer's own")


def stops_at_the_end(bench: Any) -> Timed:
    return Timed(lambda prompt, count, tick: tick(), 9)


def test_a_causal_language_model_is_measured_by_what_it_writes(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr(rounds.gc, "collect", lambda: 0)  # half a second each time
    kept = [runtime for runtime in page.RUNTIMES if runtime.generate is not None]
    assert {runtime.name for runtime in kept} >= {BASE, "torch bf16", "bitsandbytes nf4", "zsaq torch"}
    mine = {BASE, "torch bf16", "bitsandbytes nf4", "zsaq torch"}
    extra = (Runtime("odd", time=refuse, generate=refuse), Runtime("short", generate=stops_at_the_end))
    monkeypatch.setattr(page, "RUNTIMES", (*(runtime for runtime in kept if runtime.name in mine), *extra))
    table = bench(student, shapes=((1, 2),), repeats=2, threads=1, write=True)
    assert read_added(student / BENCH, fingerprint(student)).items() >= table.items()
    assert json.loads(json.dumps(table, allow_nan=False)) == table
    part = table["generation"]
    assert (part["prompt"], part["new"]) == (12, 12)
    assert [row["runtime"] for row in part["rows"]] == [BASE, "torch bf16", "zsaq torch"]
    assert set(part["left_out"]) == {"bitsandbytes nf4", "odd", "short"} and set(table["left_out"]) == {
        "bitsandbytes nf4",
        "odd",
    }
    assert part["left_out"]["short"] == "ValueError: it wrote 1 tokens where 12 were asked for"
    base = part["rows"][0]["tokens_a_second"]["best"]
    for row in part["rows"]:
        assert 0 < row["first_ms"]["best"] <= row["first_ms"]["median"]
        assert row["tokens_a_second"]["best"] >= row["tokens_a_second"]["median"] > 0
        assert row["faster"] == row["tokens_a_second"]["best"] / base
        assert row["bytes"] > 0 and row["memory"] >= 0
    (shown,) = generations(table)
    assert [row["runtime"] for row in shown.rows] == [BASE, "torch bf16", "zsaq torch"]
    assert all("ms" in row["first token"] and "(" in row["tokens a second"] for row in shown.rows)


@pytest.mark.parametrize("part", [None, 3, [], {}, {"rows": 3}, {"rows": [{"first_ms": 3, "tokens_a_second": {}}, 4]}])
def test_a_table_of_anything_is_shown(part: Any) -> None:
    for table in generations({"generation": part}):
        assert table.rows == [{"runtime": "-", "first token": "-", "tokens a second": "-"}]
