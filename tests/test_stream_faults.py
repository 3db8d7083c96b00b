"""What a checkpoint that is quantized block by block must not do in silence."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPTJConfig, GPTJForCausalLM, OPTConfig, OPTForCausalLM

import zsaq
from language_toys import bpe
from language_toys import opt as writer
from test_chain import gemma
from toys import VOCABULARY, batches, llama
from zsaq import Grid, QuantConfig
from zsaq.stream.quantizing import quantize_files
from zsaq.stream.skeleton import Skeleton
from zsaq.stream.weights import Weights, bytes_of, listed
from zsaq.streaming import unread
from zsaq.train.pair import Batch


def refused(folder: Path, config: str = "w4a16g8", **options: Any) -> str:
    with pytest.raises(ValueError) as told:
        zsaq.quantize_files(folder, folder.with_name("out"), config, **options)
    assert not folder.with_name("out").exists()
    return str(told.value)


def test_a_layer_outside_of_the_blocks_is_told_before_anything_is_spent(tmp_path: Path) -> None:
    config = OPTConfig(
        vocab_size=VOCABULARY, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=2,
        word_embed_proj_dim=16, max_position_embeddings=64,
    )  # fmt: skip
    OPTForCausalLM(config).save_pretrained(tmp_path / "opt")
    for method in ("rtn", "gptq"):
        told = refused(tmp_path / "opt", method=method, batches=unread_text() if method == "gptq" else None)
        assert "project_" in told and "stands in no block" in told


def unread_text() -> Iterator[Batch]:
    """Text that takes long to make."""
    yield batches(1)[0]
    raise AssertionError("text was made")


@pytest.mark.parametrize(
    ("config", "license", "told"), [("w4a16g8", "a/b", "license"), ("w4a16g7", None, "group size 7")]
)
def test_a_licence_and_a_group_size_are_refused_before_text_is_made(
    config: str, license: str | None, told: str, tmp_path: Path
) -> None:
    llama().save_pretrained(tmp_path / "llama")
    assert told in refused(tmp_path / "llama", config, method="gptq", batches=unread_text(), license=license)


def test_a_tie_of_two_matrices_is_told(tmp_path: Path) -> None:
    gemma().save_pretrained(tmp_path / "gemma")
    state = load_file(tmp_path / "gemma" / "model.safetensors")
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    save_file(state, tmp_path / "gemma" / "model.safetensors", metadata={"format": "pt"})
    Skeleton.of(tmp_path / "gemma")
    state["lm_head.weight"][3] += 1
    save_file(state, tmp_path / "gemma" / "model.safetensors", metadata={"format": "pt"})
    assert "hold two matrices" in refused(tmp_path / "gemma", method="rtn")


def test_a_mask_that_is_not_of_its_tokens_is_told(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "llama")
    given = [each | {"attention_mask": torch.ones(8, 10, 10)} for each in batches(3)]
    told = refused(tmp_path / "llama", method="gptq", batches=given, calibration=2)
    assert "an attention_mask [8, 10, 10]" in told and "a mask of one number a token" in told


def test_text_that_nobody_would_read_is_told(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "llama")
    assert "reads no text" in refused(tmp_path / "llama", method="rtn", batches=batches(1))
    assert "give one of them" in refused(tmp_path / "llama", method="gptq", batches=batches(1), corpus=["a text"])


def test_rows_that_were_rounded_on_are_not_compared() -> None:
    first, second = batches(2, pad=True)
    assert unread(first, [first]) is None
    mixed = {name: torch.cat([first[name][:1], second[name][:2]]) for name in first}
    found = unread(mixed, [first])
    assert found is not None and set(found) == {"input_ids", "attention_mask"}
    assert torch.equal(found["input_ids"], second["input_ids"][:2, :64])
    wider = {name: torch.nn.functional.pad(value, (3, 2)) for name, value in first.items()}
    wider["input_ids"][wider["attention_mask"] == 0] = 7
    assert unread(wider, [first]) is None and unread(first, [wider]) is None, "other padding"


def test_a_head_of_one_scale_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zsaq.stream.passing.ROWS", 40)
    llama().save_pretrained(tmp_path / "llama")
    (tmp_path / "out").mkdir()
    rules = (("lm_head", QuantConfig(weight=Grid(8, per="tensor"))),)
    config = QuantConfig(weight=Grid(4), rules=rules)
    _, near = quantize_files(tmp_path / "llama", tmp_path / "out", config, rounding="rtn", held=batches(1)[0])
    assert near is not None and near.kl < 1


def test_what_no_file_holds_is_as_from_pretrained_has_it(tmp_path: Path) -> None:
    """GPT-J's table of positions, in float32 whatever the checkpoint's dtype is."""
    config = GPTJConfig(vocab_size=64, n_embd=32, n_layer=1, n_head=2, rotary_dim=8, n_positions=64)
    GPTJForCausalLM(config).bfloat16().save_pretrained(tmp_path / "gptj")
    loaded = GPTJForCausalLM.from_pretrained(tmp_path / "gptj", dtype="auto")
    here, there = (dict(model.named_buffers()) for model in (Skeleton.of(tmp_path / "gptj").model, loaded))
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name].float(), there[name].float()) for name in here)


def test_files_beside_the_model_are_not_read(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    for name in ("model.fp16.safetensors", "consolidated.safetensors"):
        save_file({"x": torch.zeros(1)}, tmp_path / name)
    assert [path.name for path in listed(tmp_path)] == ["model.safetensors"]
    assert bytes_of(tmp_path) == (tmp_path / "model.safetensors").stat().st_size


def test_of_an_index_and_one_file_the_file_is_read_as_from_pretrained_does(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path, max_shard_size="20KB")
    other = llama()
    save_file(other.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = type(other).from_pretrained(tmp_path).state_dict()
    weights = Weights(tmp_path)
    assert all(torch.equal(weights.tensor(name), value) for name, value in loaded.items())
    (tmp_path / "model.safetensors").unlink()
    next(tmp_path.glob("model-*")).unlink()
    with pytest.raises(ValueError, match="which is not in the folder"):
        listed(tmp_path)


def test_tensors_without_a_place_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kept, told in ((2, False), (1, True)):
        llama().save_pretrained(tmp_path / "llama")
        path = tmp_path / "llama" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": kept}))
        state = load_file(tmp_path / "llama" / "model.safetensors") | {
            "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)  # known to be left over
        }
        save_file(state, tmp_path / "llama" / "model.safetensors", metadata={"format": "pt"})
        zsaq.quantize_files(tmp_path / "llama", tmp_path / str(kept), "w4a16g8", method="rtn")
        assert ("no place for 9 tensors in the files: ['model.layers.1." in capsys.readouterr().err) == told


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"batches": 5}, "batches is 5; give an iterable"),
        ({"batches": [torch.ones(2, 4).long()]}, "hold a Tensor that is no dict"),
        ({"batches": [{"input_ids": torch.ones(0, 4).long()}]}, "no sample in them"),
        ({"batches": []}, "0 batches"),
        ({"seed": "a"}, "seed is 'a'; give an integer"),
        ({"seed": -1}, "seed is -1; give an integer"),
        ({"corpus": 5}, "corpus is 5; give a path"),
    ],
)
def test_what_quantize_refuses_is_refused_here(more: dict[str, Any], told: str, tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "llama")
    assert told in refused(tmp_path / "llama", method="gptq", **more)


def test_a_corpus_of_pairs_is_read_as_in_memory(tmp_path: Path) -> None:
    for part in (writer(bpe()), bpe()):
        part.save_pretrained(tmp_path / "opt")
    given: dict[str, Any] = {
        "method": "gptq",
        "calibration": 1,
        "corpus": [("the film", "is good"), ("it was", "bad")] * 4,
    }
    zsaq.quantize_files(tmp_path / "opt", tmp_path / "files", "w4a16g16", **given)
    zsaq.quantize(tmp_path / "opt", "w4a16g16", **given).save_pretrained(tmp_path / "memory")
    here, there = Weights(tmp_path / "files"), Weights(tmp_path / "memory")
    assert here.header == there.header
    assert all(torch.equal(here.tensor(name), there.tensor(name)) for name in here.header)
