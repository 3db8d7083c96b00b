"""A model is scored on what it is for, and refused by name on anything else."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForTokenClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
    T5Config,
    T5ForConditionalGeneration,
)

from glue_toys import rows, teacher, tokenizer
from language_toys import bert, bpe, opt, wordpiece
from vision_toys import images, resnet
from zsaq.eval import imagenet, scorers, scoring, sts
from zsaq.eval.images import ImageSource
from zsaq.eval.perplexity import perplexity

SMALL: dict[str, Any] = {"vocab_size": 40, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}


def models() -> dict[str, Any]:
    torch.manual_seed(0)
    config = BertConfig(num_hidden_layers=1, **SMALL)
    t5 = T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return {
        "classifier": bert(wordpiece(), labels=2), "masked": BertForMaskedLM(config).eval(),
        "tokens": BertForTokenClassification(config).eval(), "base": BertForMaskedLM(config).bert.eval(),
        "encoder-decoder": T5ForConditionalGeneration(t5).eval(), "images": resnet(), "causal": opt(bpe()),
    }  # fmt: skip


MODELS = models()


@pytest.mark.parametrize("name", [name for name in MODELS if name != "causal"])
def test_perplexity_is_of_causal_language_models(name: str) -> None:
    with pytest.raises(ValueError, match=r"is no causal language model|cannot be scored on a text"):
        perplexity(MODELS[name], torch.arange(40), 8)
    with pytest.raises(ValueError, match=r"is no causal language model|cannot be scored on a text"):
        perplexity(MODELS["causal"], torch.arange(40), 8, teacher=MODELS[name])


@pytest.mark.parametrize("name", ["masked", "tokens", "base", "images", "causal"])
def test_a_task_is_of_classifiers_of_texts(name: str) -> None:
    with pytest.raises(ValueError, match=r"answers logits of the shape|cannot be scored on a task of texts"):
        scoring.predict(MODELS[name], tokenizer(), "sst2", rows("sst2"))
    with pytest.raises(ValueError, match=r"sst2 needs a head|answers logits|cannot be scored on a task of texts"):
        scorers.glue("sst2", None, tokenizer(), rows=rows("sst2"))(MODELS[name])
    assert len(scoring.predict(teacher(), tokenizer(), "sst2", rows("sst2"))) == 7


@pytest.mark.parametrize("name", [name for name in MODELS if name != "images"])
def test_images_are_for_classifiers_of_images(name: str) -> None:
    batch = {"pixel_values": images(2), "labels": torch.tensor([0, 1])}
    with pytest.raises(ValueError, match="cannot be scored on images"):
        imagenet.score(MODELS[name], [batch])
    with pytest.raises(ValueError, match="cannot be scored on images"):
        imagenet.score(MODELS["images"], [batch], MODELS[name])
    with pytest.raises(ValueError, match="it is no classifier"):
        imagenet.grade(torch.zeros(2, 3, 4), torch.zeros(2))


def test_tokens_that_a_model_does_not_know_are_refused() -> None:
    model = bert(wordpiece(), labels=2)
    with pytest.raises(ValueError, match=r"token \d+, and BertForSequenceClassification knows \d+ tokens"):
        scoring.predict(model, bpe(), "sst2", [{"sentence": "the film is very good", "label": 1}])
    with pytest.raises(ValueError, match=r"token \d+, and BertModel knows \d+ tokens"):
        sts.embed(model.bert, bpe(), ["the film is very good"])


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True, "8"])
def test_sizes_are_counts(wrong: Any, tmp_path: Path) -> None:
    model, words = MODELS["classifier"], wordpiece()
    calls: dict[str, Any] = {
        "batch_size": lambda: scoring.predict(model, words, "sst2", rows("sst2"), batch_size=wrong),
        "max_length": lambda: scorers.glue("sst2", None, words, rows=rows("sst2"), max_length=wrong),
        "limit": lambda: sts.read_pairs(tmp_path / "none.csv", limit=wrong),
        "threads": lambda: scorers.pictures(ImageSource("none"), MODELS["images"].config, None, threads=wrong),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=f"{name} is {wrong!r}: give an integer of at least 1"):
            call()
    for name in ("batch_size", "max_length"):
        with pytest.raises(ValueError, match=f"{name} is {wrong!r}: give an integer of at least 1"):
            sts.embed(model.bert, words, ["bad"], **{name: wrong})


def test_robertas_positions_begin_behind_that_of_padding() -> None:
    words: Any = wordpiece(types=False)
    words.model_max_length = 10**30
    sizes = {**SMALL, "vocab_size": len(words)}
    config = RobertaConfig(num_hidden_layers=1, max_position_embeddings=34, pad_token_id=1, type_vocab_size=1, **sizes)
    long = "the film " * 40
    _, cut = sts.embed(RobertaModel(config), words, [long, "bad"])
    assert cut == 1
    model, given = RobertaForSequenceClassification(config), [{"sentence": long, "label": 1}]
    assert scoring.predict(model, words, "sst2", given, max_length=32).shape == (1, 2)
    with pytest.raises(ValueError, match="has 33 tokens, the model takes 32: lower max_length"):
        scoring.predict(model, words, "sst2", given, max_length=33)


def test_a_source_that_is_nothing(tmp_path: Path) -> None:
    for source in ("", str(tmp_path / "none"), "~nobody/x"):
        with pytest.raises(ValueError, match="does not exist"):
            scorers.pictures(ImageSource(source), MODELS["images"].config, None)


def test_modes_are_left_as_they_were_where_scoring_fails_too() -> None:
    words, ids = wordpiece(), torch.arange(2, 40)
    good = {"pixel_values": images(2), "labels": torch.tensor([0, 1])}
    foreign = good | {"labels": torch.tensor([0, 9])}
    whole, fail = nullcontext, lambda: pytest.raises(ValueError)
    calls: list[tuple[Any, Any, Any]] = [
        (resnet(), whole, lambda m: imagenet.score(m, [good], m)),
        (resnet(), fail, lambda m: imagenet.score(m, [good, foreign], m)),
        (opt(bpe()), whole, lambda m: perplexity(m, ids, 8, teacher=m)),
        (opt(bpe()), fail, lambda m: perplexity(m, ids, 8, teacher=opt(words))),
        (bert(words, labels=2), whole, lambda m: scoring.predict(m, words, "sst2", rows("sst2"))),
        (bert(words, labels=2), fail, lambda m: scoring.predict(m, words, "mnli", rows("mnli"), order=[0, 1, 2])),
        (bert(words).bert, whole, lambda m: sts.embed(m, words, ["the film", "bad"])),
        (bert(words), fail, lambda m: sts.embed(m, words, ["the film", "bad"])),
    ]
    for model, outcome, call in calls:
        for module in list(model.train().modules())[1::2]:  # frozen in part
            module.training = False
        before = [module.training for module in model.modules()]
        with outcome():
            call(model)
        assert len(set(before)) == 2 and [module.training for module in model.modules()] == before
