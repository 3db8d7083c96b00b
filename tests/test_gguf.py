"""Students as GGUF files: what llama.cpp computes and reads of them, for each kind of model that it has."""

import json
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from tokenizers import normalizers

from gguf_toys import CHAT, LLAMA3, SIZE, TEACHERS, byte_level, saved, sentence_piece
from zsaq.deploy.gguf.check import words
from zsaq.deploy.gguf.families import describe, family_of, frequencies
from zsaq.deploy.gguf.serving import LlamaServer
from zsaq.deploy.gguf.tensors import parts
from zsaq.deploy.gguf.vocabulary import FLAGS, add_vocabulary
from zsaq.deploy.gguf.write import FILE, otherwise
from zsaq.deploy.parity import verify
from zsaq.deploy.runtimes import export
from zsaq.io.loading import load
from zsaq.quant.config import Grid, QuantConfig

TEXTS = {"qwen2": "w4a8b32", "gpt2": "w5a8b32", "llama-untied": "w4a8e8h8b32", "phi3": "w3a16g32-s16"}


@pytest.mark.parametrize("kind", TEACHERS)
def test_llama_cpp_computes_what_the_student_does(kind: str, tmp_path: Path) -> None:
    if kind in ("mistral", "gemma", "gemma3", "phi3"):
        tokenizer = sentence_piece(prefix=kind == "phi3", begin=kind != "phi3")
    else:
        tokenizer = byte_level("qwen2" if kind.startswith("qwen") else "gpt-2")
    folder = saved(kind, TEXTS.get(kind, "w4a16e8h8g32"), tmp_path, tokenizer)
    facts = export(folder, "gguf")
    report = verify(folder)["gguf"]
    assert report["agrees"], {name: report[name] for name in ("disagree", "end_to_end", "tokens", "worst")}
    assert report["end_to_end"]["relative"] < 0.05  # a wrong model is about 1 away
    assert report["tokens"]["differ"] == {} and report["tokens"]["texts"] in (10, 11), report["tokens"]
    assert report["worst"]["alone"]["relative"] < 1e-6
    assert report["end_to_end"]["tokens"][-1] >= 60
    assert facts["types"] and facts["bytes"] == (folder / "gguf" / FILE).stat().st_size
    assert any("llama.cpp has no windows" in note for note in facts["changed"]) == (kind == "mistral")


def test_layers_in_floats_go_along(tmp_path: Path) -> None:
    config = QuantConfig(Grid(4, per=32), rules=(("*attn.c_proj", None), ("*.1.mlp.c_fc", None)))
    folder = saved("gpt2", config, tmp_path, byte_level())
    facts = export(folder, "gguf")
    assert "F32" in facts["types"] and verify(folder)["gguf"]["agrees"]


def test_what_is_no_generator_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TEACHERS, "bare", lambda: TEACHERS["llama"]().model)
    folder = saved("bare", "w4a16e8g32", tmp_path, byte_level())
    with pytest.raises(ValueError, match="LlamaModel has no head"):
        export(folder, "gguf")
    assert not (folder / "gguf").exists()


def test_a_tensor_that_is_another_is_named(tmp_path: Path) -> None:
    folder = saved("llama", "w4a16e8g32", tmp_path, byte_level())
    export(folder, "gguf")
    model = load(folder)
    wanted = list(parts(model, family_of(model.config)))
    assert otherwise(folder / "gguf" / FILE, wanted) == []
    changed = [replace(p, data=p.data ^ 1) if p.place == "blk.1.ffn_down.weight" else p for p in wanted]
    assert otherwise(folder / "gguf" / FILE, changed) == ["blk.1.ffn_down.weight"]
    assert otherwise(folder / "gguf" / FILE, wanted[1:]) == [wanted[0].place]


def test_tokenizers_that_do_more_are_refused(tmp_path: Path) -> None:
    folder = saved("llama", "w4a16e8g32", tmp_path, byte_level())
    told = json.loads((folder / "tokenizer.json").read_text())
    size, (one, other) = SIZE, list(told["model"]["vocab"])[5:7]
    changes: list[tuple[dict[str, Any], str]] = [
        ({"normalizer": {"type": "Lowercase"}}, "Lowercase"),
        ({"model": told["model"] | {"ignore_merges": True}}, "ignore_merges"),
        ({"model": told["model"] | {"type": "Unigram"}}, "Unigram"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "Whitespace"),
        ({"added_tokens": [{"id": SIZE - 1, "content": one, "special": False}]}, "one text"),
        ({"added_tokens": [{"id": SIZE, "content": other, "special": False}]}, "and its table 400"),
        *(({"added_tokens": [told["added_tokens"][0] | {flag: True}]}, f"{flag} of '<|end|>'") for flag in FLAGS),
    ]
    for change, text in changes:
        (tmp_path / "tokenizer.json").write_text(json.dumps(told | change))
        with pytest.raises(ValueError, match=text):
            add_vocabulary(tmp_path, size, gguf.GGUFWriter(tmp_path / "x", "llama"))


@pytest.mark.parametrize("flag", FLAGS)
def test_an_added_token_that_takes_other_texts_is_seen(flag: str, tmp_path: Path) -> None:
    folder = saved("llama", "w4a16e8g32", tmp_path, byte_level())
    export(folder, "gguf")
    told = json.loads((folder / "tokenizer.json").read_text())
    told["added_tokens"][0][flag] = True
    (folder / "tokenizer.json").write_text(json.dumps(told))
    server = LlamaServer(folder / "gguf" / FILE, context=64, threads=1)
    assert [*words(folder, server)["differ"]] == ["the <|end|> fox<|end|>s"]


def test_accents_that_are_not_composed_are_told(tmp_path: Path) -> None:
    tokenizer = byte_level("qwen2")
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    told = export(saved("llama", "w4a16e8g32", tmp_path, tokenizer), "gguf")["changed"]
    assert any("(NFC)" in each for each in told)


@pytest.mark.parametrize("split", ["smollm", "llama-bpe", "qwen2"])
def test_each_way_to_split_text_is_known(split: str, tmp_path: Path) -> None:
    folder = saved("llama", "w4a16e8g32", tmp_path, byte_level(split))
    assert export(folder, "gguf")["tokenizer"] == f"gpt2, {split}"
    assert words(folder, LlamaServer(folder / "gguf" / FILE, context=64, threads=1))["differ"] == {}


def test_a_wrong_tensor_disagrees(tmp_path: Path) -> None:
    folder = saved("llama", "w4a16e8g32", tmp_path, byte_level())
    other = saved("llama", "w4a16e8g32", tmp_path / "other", byte_level(), seed=1)
    for each in (folder, other):
        export(each, "gguf")
    shutil.copyfile(other / "gguf" / FILE, folder / "gguf" / FILE)
    report = verify(folder)["gguf"]
    assert not report["agrees"]


def test_what_it_talks_with_goes_along(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = CHAT
    folder = saved("llama", "w4a16e8h8g32-s16", tmp_path, tokenizer)
    assert export(folder, "gguf")["scale_changed"] == 0
    fields = gguf.GGUFReader(folder / "gguf" / FILE).fields
    assert fields["tokenizer.chat_template"].contents() == CHAT
    server = LlamaServer(folder / "gguf" / FILE, context=64, threads=1)
    ticks = list[int]()
    server.write([3, 4, 5], 9, lambda: ticks.append(len(ticks)))
    assert len(ticks) == 9
    told = server.chat([{"role": "user", "content": "fox"}], max_tokens=3, temperature=0)
    assert told["usage"]["completion_tokens"] <= 3 and told["choices"][0]["message"]["role"] == "assistant"


def test_a_file_of_the_same_model_gives_its_tokenizer(tmp_path: Path) -> None:
    folder = saved("llama", "w4a16e8g32", tmp_path, byte_level("qwen2"))
    export(folder, "gguf")
    told = json.loads((folder / "tokenizer.json").read_text())
    told["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "."
    again = tmp_path / "again"
    shutil.copytree(folder, again, ignore=shutil.ignore_patterns("gguf", "zsaq_manifest.json"))
    (again / "tokenizer.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match="--like"):
        export(again, "gguf")
    facts = export(again, "gguf", like=folder / "gguf" / FILE)
    assert facts["tokenizer"] == f"as in {FILE}"
    keys = [set(gguf.GGUFReader(each / "gguf" / FILE).fields) for each in (folder, again)]
    assert keys[0] == keys[1]


@pytest.mark.parametrize(
    "kind, change, words",
    [
        ("llama", {"hidden_act": "relu"}, "silu"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "yarn"),
        ("gemma2", {"query_pre_attn_scalar": 16}, "query_pre_attn_scalar"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window"),
        ("llama", {"model_type": "opt"}, "no place in GGUF"),
        ("llama", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "a part of it"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma2", {"layer_types": ["full_attention", "full_attention"]}, "layer_types"),
        ("qwen3", {"layer_types": ["sliding_attention", "full_attention"]}, "layer_types"),
        ("gemma2", {"attn_logit_softcapping": None}, "soft caps"),
        ("gemma3", {"sliding_window": None}, "window"),
    ],
)
def test_what_llama_cpp_takes_for_granted_is_refused(kind: str, change: dict[str, Any], words: str) -> None:
    config = TEACHERS[kind]().config
    for name, value in change.items():
        object.__setattr__(config, name, value)
    with pytest.raises(ValueError, match=words):
        describe(config, family_of(config), gguf.GGUFWriter(None, "llama"))


def test_a_layer_without_a_type_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    folder = saved("llama", "w4a16g16", tmp_path, byte_level())
    with pytest.raises(ValueError, match="q_proj: ggml has no type for 4 bits of which 16"):
        export(folder, "gguf")
    assert not (folder / "gguf").exists()
    with pytest.raises(ValueError, match="like is x"):
        export(folder, "onnx", like="x")


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(ValueError, match="does not open"):
        LlamaServer(tmp_path / FILE)
    with pytest.raises(ValueError, match="give one of f32"):
        LlamaServer(tmp_path / FILE, cache="q3")
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ValueError, match="give others"):
        LlamaServer(tmp_path / FILE, port=taken.getsockname()[1])


def test_llama_3_turns_in_llama_alone() -> None:
    model = TEACHERS["qwen2"]()
    model.config.rope_parameters = LLAMA3
    with pytest.raises(ValueError, match="'llama3' in a qwen2"):
        frequencies(model)


def test_blocks_of_256_run_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gguf_toys

    wide = {"hidden_size": 256, "intermediate_size": 256}
    monkeypatch.setattr(gguf_toys, "GROUPED", gguf_toys.GROUPED | wide)
    for text, kind in (("w2a8b256", "Q2_K"), ("w2a8b256-ternary", "TQ2_0"), ("w3a16", "Q3_K"), ("w6a16", "Q6_K")):
        torch.manual_seed(0)
        folder = saved("llama", text, tmp_path / text, byte_level())
        assert kind in export(folder, "gguf")["types"]
        report = verify(folder)["gguf"]
        assert report["agrees"] and report["worst"]["alone"]["relative"] < 1e-6, report
