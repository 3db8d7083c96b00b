"""Texts after prompts: as a plain loop without cache or padding writes them, cut where they end."""

import math
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from language_toys import bpe, opt
from zsaq.language.models import Vocabulary
from zsaq.language.prompted import PromptedWriter, trimmed
from zsaq.train.optim import NotFinite

PROMPTS = ["the film:", "a very good story is not bad and", "it"]
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}|{% endfor %}{% if add_generation_prompt %}me: {% endif %}"
)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model_of(name: str, tokenizer: PreTrainedTokenizerFast) -> Any:
    torch.manual_seed(3)
    ends: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    size: dict[str, Any] = {
        "vocab_size": len(tokenizer) + 5,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    if name == "llama":
        config = LlamaConfig(
            **size,
            intermediate_size=48,
            max_position_embeddings=64,
            initializer_range=0.3,
            **ends,
        )
        return LlamaForCausalLM(config).eval()
    if name == "gpt2":
        config = GPT2Config(
            vocab_size=len(tokenizer) + 5, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3, **ends
        )
        return GPT2LMHeadModel(config).eval()
    return opt(tokenizer)


@torch.no_grad()
def plainly(writer: PromptedWriter, prompt: str) -> tuple[list[int], float]:
    """Reference: the likeliest tokens after one prompt, each by the whole model anew, and their fluency."""
    ids, vocabulary = writer.opened(prompt), writer.vocabulary
    written, total = [], 0.0
    while len(written) < writer.max_tokens:
        logits = writer.model(input_ids=torch.tensor([ids + written])).logits[0, -1]
        logits[~vocabulary.content] = -torch.inf
        if written:
            logits[list(vocabulary.ends)] = writer.model(input_ids=torch.tensor([ids + written])).logits[
                0, -1, list(vocabulary.ends)
            ]
        else:
            logits[writer.stops] = -torch.inf
        written.append(int(logits.argmax()))
        total += float(torch.log_softmax(logits, -1).max())
        if writer.stops[written[-1]]:
            break
    return written, total / len(written)


@pytest.mark.parametrize("name", ["opt", "llama", "gpt2"])
def test_padding_cache_and_leaving_rows_change_nothing(name: str) -> None:
    tokenizer = bpe()
    writer = PromptedWriter(model_of(name, tokenizer), tokenizer, temperature=1e-4, max_tokens=9)
    many = PROMPTS * 5
    for prompt, row in zip(many, writer.write(many, rng()), strict=True):
        ids, fluency = plainly(writer, prompt)
        text = str(tokenizer.decode(ids, skip_special_tokens=True))
        assert row.text == trimmed(text, not writer.stops[ids[-1]]) and row.fluency == pytest.approx(fluency, abs=1e-3)


def test_the_same_seed_writes_the_same_and_nothing_special() -> None:
    tokenizer = bpe()
    writer = PromptedWriter(opt(tokenizer), tokenizer, max_tokens=8, batch_size=7)
    one, same, other = (writer.write(PROMPTS * 9, rng(seed)) for seed in (0, 0, 1))
    assert one == same != other
    assert len({row.text for row in one}) > 20 and not any("<pad>" in row.text or "</s>" in row.text for row in one)


def test_a_chat_template_makes_the_prompt_the_users_turn() -> None:
    tokenizer = bpe()
    tokenizer.chat_template = TEMPLATE
    model = opt(tokenizer)
    assert tokenizer.decode(PromptedWriter(model, tokenizer).opened("a film:")) == 'user: a film|me: "'
    plain = PromptedWriter(model, tokenizer, chat=False).opened("a film:")
    assert plain[0] == Vocabulary.of(model, tokenizer).bos and tokenizer.decode(plain[1:]) == 'a film: "'


@pytest.mark.parametrize(
    ("text", "cut", "kept"),
    [
        ('good film" he said', False, "good film"),
        ("good film\nbad", True, "good film"),
        (" It is good. It is ba", True, "It is good."),
        ("no end at all", True, "no end at all"),
        ("It costs 3.5 or", True, "It costs 3.5 or"),
        ("“", True, ""),
        ("Really?! And", True, "Really?!"),
    ],
)
def test_where_a_text_is_cut(text: str, cut: bool, kept: str) -> None:
    assert trimmed(text, cut) == kept


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0}, {"temperature": 1e999}, {"temperature": math.nan}, {"temperature": "1"},
        {"temperature": True}, {"max_tokens": 0}, {"max_tokens": 2.5}, {"max_tokens": math.nan}, {"max_tokens": True},
        {"batch_size": 0}, {"batch_size": "8"}, {"chat": "no"}, {"chat": 1},
    ],
    ids=str,
)  # fmt: skip
def test_numbers_that_cannot_be(options: dict[str, Any]) -> None:
    tokenizer = bpe()
    with pytest.raises(ValueError, match="temperature"):
        PromptedWriter(opt(tokenizer), tokenizer, **options)


def test_a_prompt_beyond_the_positions_and_answers_that_are_no_numbers() -> None:
    tokenizer = bpe()
    model = opt(tokenizer)
    with pytest.raises(ValueError, match=r"a prompt of \d+ tokens and 30 more are beyond the 32 positions"):
        PromptedWriter(model, tokenizer, max_tokens=30).write(["a film:"], rng())
    model.lm_head.weight.data.fill_(torch.nan)
    with pytest.raises(NotFinite, match="take another generator"):
        PromptedWriter(model, tokenizer, max_tokens=4).write(["it"], rng())
