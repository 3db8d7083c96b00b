from collections import Counter
from itertools import islice, pairwise
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from language_toys import PROSE, bert, bpe, opt, wordpiece
from zsaq.language.layout import Layout, shortened
from zsaq.language.models import printable, token_table
from zsaq.language.sources import random_tokens, texts
from zsaq.language.text import Text, encode, similar

STRINGS = ["the film is good", "very bad", "this actor plays well in that story"]
OTHERS = ["a good story", "it was not well played and badly", "no"]
ROBERTA = ("</s> $A </s>", "</s> $A </s> </s> $B </s>")
TOKENIZERS = {
    "bert": wordpiece,
    "no segments": lambda: wordpiece(types=False),
    "gpt2": bpe,
    "opt": lambda: bpe(template=("</s> $A", "</s> $A $B")),
    "roberta": lambda: bpe(template=ROBERTA),
}


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("text_pair", [False, True])
def test_placed_content_is_what_the_tokenizer_makes(name: str, text_pair: bool) -> None:
    tokenizer = TOKENIZERS[name]()
    if text_pair and name == "gpt2":
        pytest.skip("plain concatenation is tested with the template of OPT")
    contents = [encode(tokenizer, rows) for rows in (STRINGS, OTHERS)[: 1 + text_pair]]
    batch = Layout.of(tokenizer, 32, text_pair).place(*contents)
    expected = tokenizer(STRINGS, OTHERS if text_pair else None, padding=True, return_tensors="pt", truncation=True)
    assert set(batch) == set(expected)
    for key, value in expected.items():
        assert torch.equal(batch[key], value), key


@pytest.mark.parametrize("text_pair", [False, True])
def test_what_is_too_long_is_cut_like_the_tokenizer_cuts(text_pair: bool) -> None:
    tokenizer = wordpiece()
    contents = [encode(tokenizer, rows) for rows in (STRINGS, OTHERS)[: 1 + text_pair]]
    batch = Layout.of(tokenizer, 9, text_pair).place(*contents)
    expected = tokenizer(
        STRINGS,
        OTHERS if text_pair else None,
        padding=True,
        return_tensors="pt",
        truncation="longest_first",
        max_length=9,
    )
    assert batch["input_ids"].shape[1] == 9
    for key, value in expected.items():
        assert torch.equal(batch[key], value), key


def test_cutting_takes_from_the_longest() -> None:
    assert shortened([10, 3], 9) == [6, 3] and shortened([3, 10], 4) == [2, 2] and shortened([2, 2], 9) == [2, 2]
    assert sum(shortened([7, 7], 5)) == 5


@pytest.mark.parametrize("name", ["bert", "no segments", "opt"])
@pytest.mark.parametrize("text_pair", [False, True])
@pytest.mark.parametrize("limit", [32, 9])
def test_embeddings_and_ids_give_the_same_logits(name: str, text_pair: bool, limit: int) -> None:
    tokenizer = TOKENIZERS[name]()
    model = opt(tokenizer, spare=0) if name == "opt" else bert(tokenizer)
    table = token_table(model).weight
    contents = [encode(tokenizer, rows) for rows in (STRINGS, OTHERS)[: 1 + text_pair]]
    layout = Layout.of(tokenizer, limit, text_pair)
    hard = layout.place(*contents)
    onehots = [F.one_hot(c.ids, len(table)).float() @ table for c in contents]
    soft = layout.place_soft(onehots, [c.mask for c in contents], table)
    assert set(soft) == set(hard) - {"input_ids"} | {"inputs_embeds"}
    real = hard["attention_mask"].bool()
    with torch.no_grad():
        one, other = model(**hard).logits, model(**soft).logits
    if name == "opt":
        one, other = one[real], other[real]
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_gradients_stop_at_the_length_and_flow_before_it() -> None:
    tokenizer = wordpiece()
    text = encode(tokenizer, STRINGS)
    content = torch.randn(*text.ids.shape, 32, requires_grad=True)
    batch = Layout.of(tokenizer, 6).place_soft([content], [text.mask], torch.randn(len(tokenizer), 32))
    (grad,) = torch.autograd.grad(batch["inputs_embeds"].sum(), content)
    shown = text.mask & (torch.arange(text.ids.shape[1]) < 4)
    assert torch.equal(grad.ne(0).all(-1), shown) and torch.equal(grad.ne(0).any(-1), shown)


def test_layouts_that_cannot_be() -> None:
    tokenizer = wordpiece()
    lengths: list[Any] = [2, 33, 8.5, True]
    for length in lengths:
        with pytest.raises(ValueError, match="max_length"):
            Layout.of(tokenizer, length)
    with pytest.raises(ValueError, match=r"2 content\(s\), 1 given"):
        Layout.of(tokenizer, 32, text_pair=True).place(encode(tokenizer, STRINGS))


@pytest.mark.parametrize("text_pair", [False, True])
def test_random_tokens_are_printable_and_of_many_lengths(text_pair: bool) -> None:
    tokenizer = wordpiece()
    layout = Layout.of(tokenizer, 32, text_pair)
    one, same = (list(islice(random_tokens(tokenizer, layout, 16, length=(2, 9), seed=3), 20)) for _ in range(2))
    for batch, again in zip(one, same, strict=True):
        assert all(torch.equal(batch[key], again[key]) for key in batch)
        special = torch.isin(batch["input_ids"], torch.tensor([0, 3, 4]))
        assert torch.isin(batch["input_ids"][~special], printable(tokenizer)).all()
    lengths = torch.cat([batch["attention_mask"].sum(1) for batch in one])
    low, high = (7, 21) if text_pair else (4, 11)
    assert lengths.min() == low and lengths.max() == high
    with pytest.raises(ValueError, match="length"):
        next(random_tokens(tokenizer, layout, 4, length=(5, 4)))


def test_given_texts_come_in_turns() -> None:
    tokenizer = wordpiece()
    rows = [f"{word} film" for word in "the is was good bad very and".split()]
    stream = texts(rows, tokenizer, Layout.of(tokenizer, 32), 2, seed=1)
    seen = [tuple(row.tolist()) for batch in islice(stream, 12) for row in batch["input_ids"]]
    counts = Counter(seen)
    assert len(counts) == 7 and set(counts.values()) == {3, 4} and len(set(seen[:6])) == 6
    again = texts(rows, tokenizer, Layout.of(tokenizer, 32), 2, seed=1)
    assert seen == [tuple(row.tolist()) for batch in islice(again, 12) for row in batch["input_ids"]]


def test_rows_of_similar_length_share_a_batch() -> None:
    lengths = torch.randint(1, 40, (70,), generator=torch.Generator().manual_seed(0))
    parts = list(similar(lengths, 16, torch.Generator().manual_seed(1)))
    assert len(parts) == 4 and len(torch.cat(parts).unique()) == 64
    spans = sorted((int(lengths[index].min()), int(lengths[index].max())) for index in parts)
    assert all(first[1] <= second[0] for first, second in pairwise(spans))
    assert [b.tolist() for b in parts] != [b.tolist() for b in sorted(parts, key=lambda b: int(lengths[b].min()))]


def test_pairs_that_are_given_and_pairs_that_are_made() -> None:
    tokenizer = wordpiece()
    layout = Layout.of(tokenizer, 32, text_pair=True)
    batch = next(texts(list(zip(STRINGS, OTHERS, strict=True)), tokenizer, layout, 3))
    expected = tokenizer(STRINGS, OTHERS)["input_ids"]
    rows = Text(batch["input_ids"], batch["attention_mask"].bool()).lists()
    assert sorted(rows) == sorted(expected)
    pairs = next(texts(PROSE, tokenizer, layout, 3))
    assert (pairs["input_ids"] == 4).sum(1).tolist() == [2, 2, 2]
    with pytest.raises(ValueError, match="text_pair=True"):
        next(texts([("a", "b")], tokenizer, Layout.of(tokenizer, 32), 1))
    with pytest.raises(ValueError, match="no texts"):
        next(texts([], tokenizer, layout, 1))
