"""Perplexity on a tiny causal model: the convention by hand, the teacher's columns, errors, the command line."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from zsaq.eval.perplexity import main, perplexity, tokenize

ROOT = Path(__file__).parent.parent
WORDS = ["<s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz", "<end>"]
TEXT = " ".join(chr(97 + i * i % 23) for i in range(100))


def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<unk>")


def llama(seed: int = 0, words: int = len(WORDS)) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    small: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    config = LlamaConfig(**small, vocab_size=words, max_position_embeddings=32, initializer_range=1.0)
    return LlamaForCausalLM(config).eval()


def save(folder: Path, seed: int = 0) -> str:
    llama(seed).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("batch_size", [None, 1, 4])
def test_the_convention_by_hand(batch_size: int | None) -> None:
    model, ids = llama(), tokenize(tokenizer(), TEXT)
    losses = []
    for start in range(0, len(ids) - 7, 8):
        logits = model(input_ids=ids[None, start : start + 8]).logits[0].log_softmax(-1)
        losses += [-logits[i, ids[start + i + 1]].item() for i in range(7)]
    result = perplexity(model.train(), ids, 8, batch_size=batch_size)
    assert model.training
    assert (result["windows"], result["tokens"]) == (12, 84)
    assert result["nll"] == pytest.approx(sum(losses) / 84, rel=1e-5)
    assert result["perplexity"] == pytest.approx(math.exp(sum(losses) / 84), rel=1e-5)
    first = perplexity(model, ids, 8, max_windows=2)
    assert first["nll"] == pytest.approx(sum(losses[:14]) / 14, rel=1e-5)


def test_a_uniform_model_is_perplexed_by_the_whole_vocabulary() -> None:
    model = llama()
    torch.nn.init.zeros_(model.lm_head.weight)
    assert perplexity(model, tokenize(tokenizer(), TEXT), 16)["perplexity"] == pytest.approx(len(WORDS), rel=1e-5)


def test_against_a_teacher() -> None:
    student, teacher, ids = llama(1), llama(), tokenize(tokenizer(), TEXT)
    result = perplexity(student, ids, 10, teacher=teacher)
    windows = ids[:100].view(10, 10)
    p, q = (model(input_ids=windows).logits[:, :-1].log_softmax(-1).detach() for model in (teacher, student))
    assert result["kl"] == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-5)
    assert result["agreement"] == pytest.approx((p.argmax(-1) == q.argmax(-1)).float().mean().item())
    assert result["teacher_perplexity"] == pytest.approx(perplexity(teacher, ids, 10)["perplexity"])
    itself = perplexity(teacher, ids, 10, teacher=teacher)
    assert (itself["kl"], itself["agreement"]) == (0.0, 1.0)


def test_documents_begin_with_the_special_token() -> None:
    text = "a b <end> c <end>\n d e\n<end>"
    assert (
        tokenizer().convert_ids_to_tokens(tokenize(tokenizer(), text, "<end>").tolist())
        == "<s> a b <s> c <s> d e".split()
    )
    assert tokenizer().convert_ids_to_tokens(tokenize(tokenizer(), "a <end> b").tolist()) == "<s> a <end> b".split()
    for separator in ("<eos>", ""):
        with pytest.raises(ValueError, match="is not in the text"):
            tokenize(tokenizer(), text, separator)


def test_what_does_not_fit_is_refused() -> None:
    model, ids = llama(), tokenize(tokenizer(), TEXT)
    for window in (1, 33):
        with pytest.raises(ValueError, match=f"window is {window}: the model allows 2 to 32 tokens"):
            perplexity(model, ids, window)
    with pytest.raises(ValueError, match="5 tokens do not fill a window of 8"):
        perplexity(model, ids[:5], 8)
    with pytest.raises(ValueError, match="max_windows is 0"):
        perplexity(model, ids, 8, max_windows=0)
    with pytest.raises(ValueError, match="batch_size is 0"):
        perplexity(model, ids, 8, batch_size=0)
    with pytest.raises(ValueError, match="29 and 40 tokens"):
        perplexity(model, ids, 8, teacher=llama(words=40))
    given: list[tuple[str, Any]] = [("window", 8.0), ("window", True), ("max_windows", 2.5), ("batch_size", True)]
    for name, wrong in given:
        options: dict[str, Any] = {"window": 8, name: wrong}
        with pytest.raises(ValueError, match=f"{name} is {wrong}"):
            perplexity(model, ids, **options)
    torch.nn.init.constant_(model.lm_head.weight, float("nan"))
    with pytest.raises(ValueError, match="12 of 12 windows have nan losses"):
        perplexity(model, ids, 8)


@pytest.mark.parametrize("beyond", [len(WORDS), -1])
def test_tokens_that_a_model_does_not_know_are_refused(beyond: int) -> None:
    ids = tokenize(tokenizer(), TEXT)
    ids[50] = beyond
    with pytest.raises(ValueError, match=f"token {beyond}, and LlamaForCausalLM knows 29 tokens"):
        perplexity(llama(), ids, 8)
    ids[50] = 28
    with pytest.raises(ValueError, match="token 28, and LlamaForCausalLM knows 28 tokens"):
        perplexity(llama(), ids, 8, teacher=llama(words=28))


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, text = save(tmp_path / "model"), tmp_path / "text.txt"
    text.write_text(TEXT)
    arguments = ["--model", model, "--text", str(text), str(text)]
    report = main([*arguments, "--teacher", model, "--output", str(tmp_path / "out.json")])
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1]) == json.loads((tmp_path / "out.json").read_text()) == report
    assert (report["convention"], report["window"], report["windows"], report["tokens"]) == ("gptq", 32, 6, 186)
    assert report["agreement"] == 1.0 and "gptq" in lines[0]
    expected = perplexity(llama(), tokenize(tokenizer(), f"{TEXT}\n\n{TEXT}"), 32)
    assert report["perplexity"] == expected["perplexity"]
    with pytest.raises(ValueError, match="is no file"):
        main(["--model", model, "--text", str(tmp_path / "none.txt")])


@pytest.mark.slow
def test_as_a_script_on_two_processes(tmp_path: Path) -> None:
    model, text = save(tmp_path / "model"), tmp_path / "text.txt"
    text.write_text(TEXT)
    arguments = ["--model", model, "--teacher", save(tmp_path / "other", 1), "--text", str(text), "--window", "9"]
    arguments += ["--batch_size", "2"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, "eval/perplexity.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    alone = main(arguments)
    values = {name: pytest.approx(v, rel=1e-5) if isinstance(v, float) else v for name, v in alone.items()}
    assert json.loads(done.stdout.splitlines()[-1]) == values
