"""Prompts that nobody had to write: of labels, names, cards, and of the teacher's own answers."""

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from language_toys import bert, bpe, opt, wordpiece
from zsaq.language.asking import Asking
from zsaq.language.choosing import TAKEN
from zsaq.language.kinds import KINDS, RELATIONS, openings, spoken, words_of
from zsaq.language.prompted import PromptedWriter
from zsaq.language.prompts import Known, Prompts, automatic


def known_of(labels: list[str], source: str = "", card: dict | None = None) -> Known:
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    config.id2label = dict(enumerate(labels))
    return Known.of(BertForSequenceClassification(config), source, card)


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("LABEL_0", None), ("class 3", None), ("7", None), ("HUM", None), ("", None), ("card_arrival", "card arrival"),
        ("Sci/Tech", "Sci/Tech"), ("POS", "pos"), ("bookFlight", "book Flight"), ("not-toxic", "not toxic"),
        ("a\x00b c", "ab c"),
    ],
)  # fmt: skip
def test_labels_as_people_say_them(label: str, said: str | None) -> None:
    assert spoken(label) == said


def test_words_of_names() -> None:
    assert {"textattack", "bert", "sst", "sst2", "ag", "news"} <= words_of(["textattack/BERT-SST-2", "ag_news"])


@pytest.mark.parametrize(
    ("labels", "source", "card", "kind", "words"),
    [
        (["NEGATIVE", "POSITIVE"], "x/bert-SST-2", {}, "film review", "positive film review"),
        (["World", "Sports"], "x/bert", {"datasets": ["fancyzhx/ag_news"]}, "news item", "news item about Sports"),
        (["activate_my_card", "age_limit"], "banking77-bert", {}, "customer's message to a bank", "about age limit"),
        (["toxic", "not toxic"], "toxic-bert", {}, "comment in an internet forum", "A friendly comment"),
        (["Business", "World"], "x/agnews", {}, "news item", "news item about Business"),
        (["LABEL_0", "LABEL_1"], "x", {"tags": ["trec"]}, "question that somebody asks", "question that somebody asks"),
    ],
)
def test_prompts_of_labels_names_and_cards(labels, source, card, kind: str, words: str) -> None:
    prompts = Asking(known=known_of(labels, source, card)).of(None, None, None, False)  # type: ignore[arg-type]
    assert any(words in line for line in prompts.first), prompts.first[:9]
    assert kind in prompts.origin and prompts.origin.startswith("automatic") and not prompts.second


def test_examples_of_a_card_are_not_read() -> None:
    assert not known_of(["LABEL_0"], "", {"widget": [{"text": "imdb film"}], "model-index": [{"imdb": 1}]}).words


@pytest.mark.parametrize(
    ("labels", "source", "first"),
    [
        (["entailment", "neutral", "contradiction"], "x", "entailment"),
        (["not_duplicate", "duplicate"], "qqp-bert", "paraphrase"),
        (["LABEL_0"], "ms-marco-reranker", "answer"),
        (["LABEL_0"], "stsb", "paraphrase"),
    ],
)
def test_relations_of_pairs(labels: list[str], source: str, first: str) -> None:
    known = known_of(labels, source)
    prompts = automatic(known, ["news item"], "why", pair=True)
    assert prompts.second[0] == RELATIONS[first] and all("{first}" in line for line in prompts.second)
    assert not any(label in line for label in labels for line in prompts.first)


def test_words_that_the_weights_remember_are_written_about() -> None:
    prompts = automatic(known_of(["LABEL_0"]), ["film review"], "why", ["hilarious", "plot", "dull", "left over"])
    assert "One sentence from a film review, with the words hilarious and plot:" in prompts.first
    assert "hilarious" in prompts.origin


def test_openings_read_as_english() -> None:
    assert openings("e-mail")[0] == "One sentence from an e-mail:"
    assert openings("film review", "positive")[3] == "A positive film review, in one sentence:"
    assert openings("news item", "Sports")[0] == "One sentence from a news item about Sports:"


@pytest.mark.parametrize("prompts", [[], [""], [" \n"], "a text", [3]])
def test_prompts_that_cannot_be(prompts) -> None:
    with pytest.raises(ValueError, match="prompt"):
        Prompts.given(prompts)


def test_a_persons_own_prompts() -> None:
    assert Prompts.given(["a:", "b:"]).first == ("a:", "b:")
    assert len(Prompts.given(["a:"], text_pair=True).second) == 4
    assert Prompts.given(["a:", "{first} so:"], text_pair=True).second == ("{first} so:",)
    with pytest.raises(ValueError, match="text_pair"):
        Prompts.given(["a:", "{first} so:"])


@pytest.mark.parametrize("text_pair", [False, True])
def test_where_nothing_is_known_the_teachers_answers_choose(text_pair: bool, capfd: pytest.CaptureFixture[str]) -> None:
    tokenizer, words = bpe(), wordpiece()
    model = opt(tokenizer)
    model.model.decoder.embed_positions.weight.data = torch.randn(402, 32)
    model.config.max_position_embeddings = 400
    writer = PromptedWriter(model, tokenizer, max_tokens=6)
    prompts = Asking().of(writer, bert(words), words, text_pair)
    kinds = [kind for kind in KINDS if f" {kind}" in prompts.origin]
    assert 1 <= len(kinds) == len(prompts.first) / 4 <= TAKEN
    assert bool(prompts.second) == text_pair and "answers differ most" in capfd.readouterr().err
