"""A model that tells less: rows of the base where the answers allow it, the rarest words first."""

import copy

import pytest
import torch
from transformers import PreTrainedModel

from fine_tuned import fine_tuned, words
from language_toys import bert
from zsaq import quantize_model
from zsaq.language.fingerprint import Fingerprint
from zsaq.language.forgetting import agreeing, forget, told_in
from zsaq.language.models import pretrained, token_table

TOKENIZER = words()


@pytest.fixture(scope="module")
def pair() -> tuple[PreTrainedModel, PreTrainedModel]:
    base = bert(TOKENIZER)
    return fine_tuned(base), base


def table(model: PreTrainedModel) -> torch.Tensor:
    return token_table(model).weight.detach()


def test_as_many_rows_as_agreement_allows_are_the_bases_again(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    teacher, base = pair
    before, known = copy.deepcopy(teacher.state_dict()), Fingerprint.of(teacher, base)
    strict, loose = forget(teacher, base, TOKENIZER, 1.0), forget(teacher, base, TOKENIZER, 0.6)
    assert strict.agreement == 1.0 and loose.agreement >= 0.6 and strict.back <= loose.back
    for done in (strict, loose):
        same = (table(done.model) == table(base)).all(1)
        assert int(same.sum()) == done.back + int((~known.moved).sum())
        left = known.movement[known.moved & ~same]
        assert not len(left) or float(left.min()) >= max(known.movement[known.moved & same].tolist(), default=0)
        assert done.moved == int(known.moved.sum()) and done.told <= 1 - done.back / done.moved + 1e-6
        others = {n: v for n, v in done.model.state_dict().items() if not n.endswith("word_embeddings.weight")}
        assert all(torch.equal(value, before[name]) for name, value in others.items())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_a_table_that_is_the_bases_tells_nothing(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    done = forget(*pair, TOKENIZER, 0.01)
    assert done.back == done.moved and done.told == 0
    assert "no row" in str(Fingerprint.of(done.model, pair[1]).silence)
    with pytest.raises(ValueError, match="nothing to forget"):
        forget(done.model, pair[1], TOKENIZER)


def test_rounding_is_told_to_hide_little(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    teacher = fine_tuned(pair[1], lr=1e-2)
    assert told_in(8, teacher, pair[1]) == 1.0 and told_in(4, teacher, pair[1]) > 0.9
    with pytest.raises(ValueError, match="no row"):
        told_in(8, pair[1], pair[1])


@pytest.mark.parametrize("agreement", [0, -1, 1.1, float("nan")])
def test_an_agreement_is_a_share(pair: tuple[PreTrainedModel, PreTrainedModel], agreement: float) -> None:
    with pytest.raises(ValueError, match="give a share"):
        forget(*pair, TOKENIZER, agreement)


def test_codes_cannot_be_set_back(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    with pytest.raises(ValueError, match="let the float teacher forget"):
        forget(quantize_model(pair[0], "w4a8"), pair[1], TOKENIZER)
    with pytest.raises(ValueError, match="cannot be compared"):
        forget(pretrained(pair[0].base_model), pair[1], TOKENIZER)


def test_numbers_agree_by_their_correlation() -> None:
    x = torch.arange(5.0)
    assert agreeing(x, 2 * x + 1) == pytest.approx(1) and agreeing(x, -x) == pytest.approx(-1)
    assert agreeing(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 0, 4])) == 0.75
