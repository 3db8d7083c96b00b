"""What a teacher's answers say of a text, by hand and in order."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fine_tuned import KNOWN, STRANGE, fine_tuned, words
from language_toys import bert, bpe, opt
from zsaq.language.fingerprint import Fingerprint
from zsaq.language.models import pretrained
from zsaq.language.suitability import Reading, Suitability

TOKENIZER = words()
TEXTS = [" ".join(KNOWN[i : i + 6]) for i in range(40)]


def read(logits: Tensor) -> dict[str, float]:
    answers: Any = lambda **batch: SimpleNamespace(logits=logits[batch["input_ids"][:, 0]])  # noqa: E731
    answers.device = "cpu"
    reading = Reading(answers, causal=False)
    for part in torch.arange(len(logits)).split(3):
        reading.add({"input_ids": part[:, None]})
    return reading.facts()


def test_information_is_the_entropy_of_the_mean_less_the_mean_entropy() -> None:
    sure = read(torch.tensor([[100.0, 0.0], [0.0, 100.0], [100.0, 0.0], [0.0, 100.0]]))
    assert sure["information"] == pytest.approx(math.log(2)) and sure["doubt"] == pytest.approx(0, abs=1e-6)
    assert sure["coverage"] == 1 and sure["spread"] == pytest.approx(0.5)
    alike = read(torch.tensor([[100.0, 0.0, 0.0]] * 4))
    assert alike["information"] == pytest.approx(0, abs=1e-6) and alike["coverage"] == pytest.approx(1 / 3)
    unsure = read(torch.zeros(5, 4))
    assert unsure["information"] == pytest.approx(0, abs=1e-6) and unsure["doubt"] == pytest.approx(math.log(4))
    answers = torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.1, -1.0]]).softmax(-1)
    by_hand = -(answers.mean(0) * answers.mean(0).log()).sum() + (answers * answers.log()).sum(-1).mean()
    assert read(answers.log())["information"] == pytest.approx(float(by_hand), abs=1e-6)


def test_a_number_has_its_deviation_and_nothing_else() -> None:
    assert read(torch.tensor([[1.0], [3.0]])) == {"spread": 1.0}


def test_a_classifier_with_and_without_its_base() -> None:
    base = bert(TOKENIZER)
    teacher = fine_tuned(base)
    known = Fingerprint.of(teacher, base)
    own = Suitability.of(teacher, TOKENIZER, TEXTS, known)
    assert own.alien == 0 and own.texts == 40 and own.tokens == 6 and own.perplexity is None
    assert own.information == pytest.approx((own.entropy or 0) - (own.doubt or 0), abs=1e-6)
    assert Suitability.of(teacher, TOKENIZER, list(STRANGE), known).alien == 1
    assert Suitability.of(teacher, TOKENIZER, TEXTS).alien is None
    assert Suitability.of(teacher, TOKENIZER, TEXTS, Fingerprint.of(base, base)).alien is None
    pairs = Suitability.of(teacher, TOKENIZER, [(text, text) for text in TEXTS], known)
    assert pairs.tokens == 12
    assert own.verdict(Suitability.of_random(teacher, TOKENIZER)).startswith("information ")


def test_a_causal_model_is_asked_for_its_own_perplexity() -> None:
    tokenizer = bpe()
    teacher, texts = opt(tokenizer), ["the film is very good", "it was badly played in this story"]
    own = Suitability.of(teacher, tokenizer, texts)
    ids = [[1, *row] for row in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    begins = [row if tokenizer(text)["input_ids"] == row else row[1:] for row, text in zip(ids, texts, strict=True)]
    with torch.no_grad():
        losses = [
            -teacher(torch.tensor([row])).logits[0, :-1].log_softmax(-1).gather(1, torch.tensor(row)[1:, None])
            for row in begins
        ]
    assert own.perplexity == pytest.approx(float(torch.cat(losses).mean().exp()), rel=1e-4)
    assert own.coverage == len({i for row in begins for i in row[1:]}) / teacher.config.vocab_size
    assert "perplexity" in own.verdict(Suitability.of_random(teacher, tokenizer))


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(ValueError, match="no texts"):
        Suitability.of(bert(TOKENIZER), TOKENIZER, [])
    with pytest.raises(ValueError, match="neither"):
        Suitability.of(pretrained(bert(TOKENIZER).base_model), TOKENIZER, TEXTS)
