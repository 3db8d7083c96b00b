import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MixtralConfig, MixtralForCausalLM

import zsaq
from commands import told
from language_toys import bpe
from language_toys import opt as writer
from test_chain import gemma, t5
from toys import batches, bert, gpt2, llama, opt
from zsaq import Grid, QuantConfig
from zsaq.language.sam_sga import gptq_student
from zsaq.quant.model import quantize_model
from zsaq.stream import shards
from zsaq.stream.quantizing import quantize_files
from zsaq.stream.weights import Weights

HEAD = QuantConfig(weight=Grid(8), embedding=Grid(8))


def tied() -> Any:
    torch.manual_seed(0)
    model = gemma()
    return model


CASES: list[tuple[Callable[[], Any], str, dict[str, Any]]] = [
    (llama, "w4a16g8", {}),
    (llama, "w3a8", {"rules": (("lm_head", HEAD),)}),
    (tied, "w4a8g8", {}),
    (tied, "w4a16g8", {"rules": (("model.embed_tokens", HEAD),)}),
    (gpt2, "w2a8", {}),
    (opt, "w2a8-ternary", {"rules": (("*.fc1", None),)}),
    (tied, "w4a16h8g8", {}),
    (llama, "w4a8e8h4g8", {}),
]


def written(model: Any, folder: Path) -> Any:
    model.save_pretrained(folder, max_shard_size="20KB")
    return type(model).from_pretrained(folder, dtype="auto").eval()


@pytest.mark.parametrize(("make", "text", "more"), CASES)
@pytest.mark.parametrize("rounding", ["rtn", "gptq"])
@pytest.mark.parametrize("half", [False, True])
def test_what_is_written_block_by_block_is_what_memory_gives(
    make: Callable[[], Any], text: str, more: dict[str, Any], rounding: Any, half: bool, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(shards, "SIZE", 2**13)
    torch.manual_seed(0)
    teacher = written(make().half() if half else make(), tmp_path / "teacher")
    config, given = dataclasses.replace(QuantConfig.parse(text), **more), batches(2, pad=True)
    student = quantize_model(teacher, config) if rounding == "rtn" else gptq_student(teacher, config, given)
    student.save_pretrained(tmp_path / "memory")
    (tmp_path / "files").mkdir()
    held, mask = given[0], given[0]["attention_mask"].bool()
    read = given if rounding == "gptq" else ()
    _, near = quantize_files(
        tmp_path / "teacher", tmp_path / "files", config, rounding=rounding, batches=read, held=held
    )
    here, there = Weights(tmp_path / "memory"), Weights(tmp_path / "files")
    assert here.header == there.header and len(list((tmp_path / "files").glob("*.safetensors"))) > 1
    assert [name for name in here.header if not torch.equal(here.tensor(name), there.tensor(name))] == []
    assert near is not None
    with torch.no_grad():
        t, s = (m.float()(**held).logits[mask].log_softmax(-1) for m in (teacher, student))
    assert near.kl == pytest.approx(float((t.exp() * (t - s)).sum(-1).mean()), rel=1e-3, abs=1e-6)
    assert near.agreement == pytest.approx(float((t.argmax(-1) == s.argmax(-1)).float().mean()))


def test_a_folder_is_quantized_saved_and_loaded(tmp_path: Path) -> None:
    written(writer(bpe()), tmp_path / "teacher")
    bpe().save_pretrained(tmp_path / "teacher")
    given = batches(6)
    results = zsaq.quantize_files(tmp_path / "teacher", tmp_path / "out", "w4a16g8", batches=given, calibration=4)
    assert results.model == "teacher" and str(tmp_path) not in (tmp_path / "out" / "results.json").read_text()
    again: Any = zsaq.load(tmp_path / "out")
    assert again.zsaq.results == results and again.zsaq.problem is None
    assert not results.zero_shot and "left alone" in results.coverage["lm_head"]
    assert set(results.student.scores) == {"kl", "agreement", "tokens"} and not results.own_text
    memory = zsaq.quantize(
        tmp_path / "teacher", "w4a16g8", method=lambda job, config, *_: gptq_student(job.start, config, given[:4])
    )
    memory.save_pretrained(tmp_path / "memory")
    config, other = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("out", "memory"))
    assert config == other
    x = given[0]["input_ids"]
    assert torch.equal(again(input_ids=x).logits, zsaq.load(tmp_path / "memory")(input_ids=x).logits)


def test_a_model_writes_its_own_text_where_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(writer(bpe()), tmp_path / "teacher")
    bpe().save_pretrained(tmp_path / "teacher")
    results = zsaq.quantize_files(tmp_path / "teacher", tmp_path / "own", "w4a16g8", calibration=2)
    student = zsaq.quantize(tmp_path / "teacher", "w4a16g8", method="gptq", calibration=2)
    assert results.zero_shot and results.own_text["agreement"] > 0.2
    x, again = batches(1)[0]["input_ids"], zsaq.load(tmp_path / "own")
    assert torch.equal(again(input_ids=x).logits, student(input_ids=x).logits)
    monkeypatch.setattr("zsaq.streaming.SPARE", 1e12)
    with pytest.raises(ValueError, match="give corpus="):
        zsaq.quantize_files(tmp_path / "teacher", tmp_path / "own2", "w4a16g8")
    assert not (tmp_path / "own2").exists()


def test_the_command_line_is_a_thin_cover(tmp_path: Path) -> None:
    written(writer(bpe()), tmp_path / "teacher")
    bpe().save_pretrained(tmp_path / "teacher")
    facts = told("quantize-files", tmp_path / "teacher", "--output_dir", tmp_path / "out", "--method", "rtn")
    assert facts["config"] == QuantConfig.parse("w4a16e8h8g32-s16").to_dict() and facts["method"] == "rtn"
    assert told("verify", tmp_path / "out")["agrees"]
    wrong = told("quantize-files", tmp_path / "teacher", "--output_dir", tmp_path / "out2", "--steps", "3", code=2)
    assert "its options are" in wrong["error"]


def refused(folder: Path, config: str = "w4a16g8", **options: Any) -> str:
    target = folder.with_name("refused")
    with pytest.raises(ValueError) as told:
        zsaq.quantize_files(folder, target, config, **options)
    assert not target.exists()
    return str(told.value)


def test_what_cannot_be_done_block_by_block_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for make in (bert, t5):
        written(make(), tmp_path / make.__name__)
    assert "no causal language model" in refused(tmp_path / "bert", method="rtn")
    config = MixtralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=2,
    )  # fmt: skip
    written(MixtralForCausalLM(config), tmp_path / "mixtral")
    assert "many experts" in refused(tmp_path / "mixtral", method="rtn")
    assert "is no folder" in refused(tmp_path / "no such folder", method="rtn")
    teacher = written(llama(), tmp_path / "llama")
    assert "there are rtn, gptq" in refused(tmp_path / "llama", method="zsaq")
    assert "group size" in refused(tmp_path / "llama", "w4a16g7", method="rtn")
    assert "its options are" in refused(tmp_path / "llama", method="gptq", steps=3)
    assert "static" in refused(tmp_path / "llama", QuantConfig(input=Grid(8, per="tensor")), method="rtn")  # type: ignore[arg-type]
    quantize_model(teacher, "w4a16g8").save_pretrained(tmp_path / "student")
    assert "quantized already" in refused(tmp_path / "student", method="rtn")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state.pop("model.norm.weight"), "no file holds model.norm.weight"),
        (lambda state: state["model.layers.0.mlp.up_proj.weight"].fill_(float("nan")), "not finite"),
        (lambda state: state["model.embed_tokens.weight"][3].fill_(float("inf")), "not finite"),
        (lambda state: state.update({"lm_head.weight": torch.zeros(2, 2)}), "in its file"),
    ],
)
def test_files_that_are_not_the_models_are_told(change: Callable[[Any], Any], told: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    llama().save_pretrained(tmp_path / "llama")
    state = load_file(tmp_path / "llama" / "model.safetensors")
    change(state)
    save_file(state, tmp_path / "llama" / "model.safetensors", metadata={"format": "pt"})
    assert told in refused(tmp_path / "llama", method="rtn")
