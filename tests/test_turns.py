"""Conversations that a chat model writes by itself: its template's turns, and what stands in them."""

import copy
import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from language_toys import bpe, opt
from zsaq.language.job import TextJob
from zsaq.language.models import Vocabulary
from zsaq.language.sampling import continued
from zsaq.language.turns import ASKED, SHARE, Turns
from zsaq.train.widening import keep_narrow

CHATML = (
    "{% for m in messages %}a{{ m.role }} {{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}ame {% endif %}"
)
BRACKETS = (
    "{% for m in messages %}{% if m.role == 'user' %}[it] {{ m.content | trim }} [/it]{% else %} {{ m.content }}</s>"
    "{% endif %}{% endfor %}"
)
ODD = {
    "none": None,
    "no such exchange": "nothing",
    "says it twice": "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}",
    "refuses": "{{ raise_exception('no') }}",
    "broken": "{% for %}",
    "starts with the word": "{% for m in messages %}{{ m.content }}</s>{% endfor %}",
}


def chat(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    tokenizer = bpe()
    tokenizer.chat_template, tokenizer.model_max_length = template, 64
    return tokenizer


def llama(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(3)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer) + 5, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=64, initializer_range=0.3, bos_token_id=1, eos_token_id=1,
            pad_token_id=0,
        )
    ).eval()  # fmt: skip


@pytest.mark.parametrize("template", [CHATML, BRACKETS])
def test_a_row_is_the_template_with_two_turns_in_it(template: str) -> None:
    tokenizer = chat(template)
    model, turns = llama(tokenizer), Turns.of(tokenizer)
    assert turns is not None
    shown = tokenizer.apply_chat_template([{"role": "user", "content": ASKED}], tokenize=False)
    assert tokenizer.decode(list(turns.before)) == str(shown).split(ASKED)[0].rstrip(" ")
    text = turns.write(model, Vocabulary.of(model, tokenizer), 9, 40, rng=torch.Generator().manual_seed(0))
    room = 40 - len(turns.before) - len(turns.between)
    assert len(text) == 9
    for row in text.lists():
        assert len(row) <= 40 and tuple(row[: len(turns.before)]) == turns.before
        asked = row[len(turns.before) :]
        places = [i for i in range(1, len(asked)) if tuple(asked[i : i + len(turns.between)]) == turns.between]
        assert places and places[0] <= room // SHARE
        answer = asked[places[0] + len(turns.between) :]
        assert answer and 1 not in answer[:-1] and 0 not in answer


def test_the_same_seed_writes_the_same() -> None:
    tokenizer = chat()
    model, turns = llama(tokenizer), Turns.of(tokenizer)
    assert turns is not None
    a, b, c = (
        turns.write(model, Vocabulary.of(model, tokenizer), 5, 40, rng=torch.Generator().manual_seed(seed)).lists()
        for seed in (0, 0, 1)
    )
    assert a == b != c


@pytest.mark.parametrize("template", list(ODD.values()), ids=list(ODD))
def test_a_template_that_shows_no_exchange_opens_none(template: str | None) -> None:
    assert Turns.of(chat(template)) is None
    job = TextJob.of(llama(chat(template)), chat(template), max_length=32)
    assert next(job.text(0))["input_ids"].shape[0] == 16


def test_a_template_longer_than_the_rows_is_told() -> None:
    tokenizer = chat()
    model, turns = llama(tokenizer), Turns.of(tokenizer)
    assert turns is not None
    with pytest.raises(ValueError, match="give longer rows"):
        turns.write(model, Vocabulary.of(model, tokenizer), 2, len(turns.before), rng=torch.Generator())


def test_half_of_a_chat_models_own_text_are_conversations() -> None:
    tokenizer = chat()
    turns = Turns.of(tokenizer)
    assert turns is not None
    job = TextJob.of(llama(tokenizer), tokenizer, max_length=48)
    job.style = {"refresh": 2}
    stream = job.text(0)
    rows = [row for _ in range(2) for row in next(stream)["input_ids"].tolist()]
    assert sum(tuple(row[: len(turns.before)]) == turns.before for row in rows) == len(rows) // 2
    job.style = {"refresh": 2, "chat": 0.0}
    plain = next(job.text(0))["input_ids"].tolist()
    assert not any(tuple(row[: len(turns.before)]) == turns.before for row in plain)
    with pytest.raises(ValueError, match="chat is 2"):
        job.style = {"chat": 2}
        job.text(0)


def test_another_models_text_is_none_of_its_conversations() -> None:
    tokenizer = chat()
    job = TextJob.of(llama(tokenizer), tokenizer, generator=(opt(bpe()), bpe()), max_length=30)
    assert job.text(0).chat == 0  # pyright: ignore[reportAttributeAccessIssue]


def test_each_row_has_a_temperature_of_its_own_and_what_ended_leaves() -> None:
    tokenizer = chat()
    model = llama(tokenizer)
    never = torch.zeros(len(tokenizer) + 5, dtype=torch.bool)
    stops = never.clone()
    stops[1] = True
    shares: list[float] = []
    found = continued(
        model, [[1]] * 24, [5] * 12 + [9] * 12, never=never, stops=stops, rng=torch.Generator().manual_seed(0),
        heat=torch.tensor([1e-4] * 12 + [3.0] * 12), tell=shares.append,
    )  # fmt: skip
    assert len({json.dumps(each.ids) for each in found[:12]}) == 1 < len({json.dumps(each.ids) for each in found[12:]})
    assert all(len(each.ids) <= 5 for each in found[:12]) and shares == sorted(shares) and shares[-1] == 1
    assert all(each.cut or each.ids[-1] == 1 for each in found)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_narrow_model_writes_as_its_copy_in_float32(dtype: torch.dtype) -> None:
    """Conversations too: in 16 bits a processor that calculates in 32 would take hours."""
    tokenizer = chat()
    narrow = llama(tokenizer).to(dtype)  # pyright: ignore[reportArgumentType]
    wide = copy.deepcopy(narrow).float()
    keep_narrow(narrow)
    turns = Turns.of(tokenizer)
    assert turns is not None
    rows = [
        turns.write(model, Vocabulary.of(model, tokenizer), 5, 40, rng=torch.Generator().manual_seed(0)).lists()
        for model in (narrow, wide)
    ]
    assert rows[0] == rows[1] and narrow.dtype == dtype
