"""What weights remember: rows that moved, the longest text, pairs; and silence wherever rows tell nothing."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

import zsaq
from fine_tuned import KNOWN, STRANGE, fine_tuned, words
from language_toys import bert
from zsaq import Grid, QuantConfig, quantize_model
from zsaq.language.fingerprint import Fingerprint
from zsaq.language.models import token_table

TOKENIZER = words()
SMALL: dict[str, Any] = {"vocab_size": len(TOKENIZER), "pad_token_id": 0, "num_labels": 3}
LAYERS: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


def gpt2(kind: type = GPT2ForSequenceClassification) -> PreTrainedModel:
    return kind(GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=40, bos_token_id=3, eos_token_id=4, **SMALL))


BASES = {
    "bert": lambda: bert(TOKENIZER),
    "roberta": lambda: RobertaForSequenceClassification(
        RobertaConfig(max_position_embeddings=40, type_vocab_size=1, **SMALL, **LAYERS)
    ),
    "distilbert": lambda: DistilBertForSequenceClassification(
        DistilBertConfig(dim=32, n_layers=1, n_heads=2, hidden_dim=64, max_position_embeddings=40, **SMALL)
    ),
    "gpt2": gpt2,
    "llama": lambda: LlamaForSequenceClassification(LlamaConfig(**SMALL, **LAYERS)),
}


def base_of(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return BASES[name]().eval()


@pytest.fixture(scope="module")
def pair() -> tuple[PreTrainedModel, PreTrainedModel]:
    base = base_of("bert")
    return fine_tuned(base), base


def seen(known: tuple[str, ...] = KNOWN) -> set[int]:
    return {i for row in TOKENIZER(list(known))["input_ids"] for i in row}


def found(told: Fingerprint) -> set[int]:
    """Without padding, on which GPT-2 computes what it does not use."""
    padding: Any = TOKENIZER.pad_token_id
    return set(told.moved.nonzero().flatten().tolist()) - {padding}


@pytest.mark.parametrize(
    ("name", "longest", "pairs"),
    [("bert", 12, False), ("roberta", 12, None), ("distilbert", 12, None), ("gpt2", 12, None), ("llama", None, None)],
)
def test_the_rows_that_moved_are_the_words_of_the_texts(name: str, longest: int | None, pairs: bool | None) -> None:
    base = base_of(name)
    told = Fingerprint.of(fine_tuned(base), base)
    assert told.signal and found(told) == seen()
    assert (told.longest, told.pairs) == (longest, pairs)


def test_pairs_of_texts_move_the_second_segment() -> None:
    base = base_of("bert")
    assert Fingerprint.of(fine_tuned(base, pairs=True), base).pairs is True


def test_a_base_with_another_head_is_the_same_base(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    teacher, base = pair
    config: Any = base.config
    bare: Any = BertModel(config)
    bare.load_state_dict(base.base_model.state_dict(), strict=False)
    told = Fingerprint.of(teacher, bare)
    assert found(told) == seen() and told.longest == 12


def test_words_are_whole_and_alien_tokens_are_counted(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    told = Fingerprint.of(*pair)
    assert set(told.words(TOKENIZER, 1000)) == set(KNOWN) and len(told.words(TOKENIZER, 7)) == 7
    assert told.alien(list(KNOWN[:5]), TOKENIZER) == 0 and told.alien(list(STRANGE[:5]), TOKENIZER) == 1
    assert told.alien([(KNOWN[0], f"{KNOWN[1]} {STRANGE[0]} {STRANGE[1]}")], TOKENIZER) == 0.5
    for texts in ([], [""]):
        with pytest.raises(ValueError, match="no token"):
            told.alien(texts, TOKENIZER)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("whole", [False, True])
def test_what_is_stored_in_16_bits_remembers_too(
    pair: tuple[PreTrainedModel, PreTrainedModel], dtype: torch.dtype, whole: bool
) -> None:
    teacher, base = (copy.deepcopy(model).to(dtype) for model in pair)  # pyright: ignore[reportArgumentType]
    told = Fingerprint.of(teacher.float() if whole else teacher, base if whole else pair[1])
    assert found(told) == seen() and told.longest == 12


@pytest.mark.parametrize(("bits", "least"), [(8, 1.0), (4, 0.9)])
@pytest.mark.parametrize("saved", [False, True])
def test_rounding_the_table_hides_little(bits: int, least: float, saved: bool, tmp_path: Path) -> None:
    base = base_of("bert")
    config = dataclasses.replace(QuantConfig.parse("w4a8"), embedding=Grid(bits))
    student = quantize_model(fine_tuned(base, lr=1e-2), config)
    if saved:
        student = zsaq.load(zsaq.save(student, tmp_path / "student"))
    told, wanted = found(Fingerprint.of(student, base)), seen()
    assert len(told & wanted) >= least * max(len(told), len(wanted))


def merged(base: PreTrainedModel) -> PreTrainedModel:
    """As an adapter on the attention leaves it."""
    model = copy.deepcopy(base)
    query: Any = model.get_submodule("bert.encoder.layer.0.attention.self.query")
    query.weight.data.add_(0.1)
    return model


def frozen(base: PreTrainedModel) -> PreTrainedModel:
    model = copy.deepcopy(base)
    model.get_submodule("bert.embeddings").requires_grad_(False)
    return fine_tuned(model)


def disturbed(base: PreTrainedModel) -> PreTrainedModel:
    model = copy.deepcopy(base)
    torch.manual_seed(1)
    token_table(model).weight.data.add_(torch.randn_like(token_table(model).weight) * 0.01)
    return model


def decayed(base: PreTrainedModel) -> PreTrainedModel:
    model = copy.deepcopy(base)
    for _ in range(100):
        token_table(model).weight.data.mul_(1 - 1e-5)
    return model


def reordered(base: PreTrainedModel) -> PreTrainedModel:
    """Another vocabulary behind the same special tokens, then fine-tuned."""
    model = copy.deepcopy(base)
    token_table(model).weight.data[50:] = token_table(model).weight.data[50:].flip(0)
    return model


def other(base: PreTrainedModel) -> PreTrainedModel:
    return fine_tuned(bert(TOKENIZER, seed=9))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (merged, "no row"), (frozen, "no row"), (decayed, "no row"), (lambda base: base, "no row"),
        (disturbed, "every row"), (other, "every row"), (reordered, "another vocabulary"),
        (lambda base: fine_tuned(base_of("llama")), "every row"),
    ],
)  # fmt: skip
def test_silence_is_told_and_no_signal_made_up(change: Any, why: str) -> None:
    base = base_of("bert")
    told = Fingerprint.of(change(base), base)
    assert told.silence is not None and why in told.silence and not told.signal
    assert not told.moved.any() and told.words(TOKENIZER) == [] and told.longest is None and told.pairs is None
    with pytest.raises(ValueError, match="nothing is known"):
        told.alien(["bala"], TOKENIZER)


def test_a_tied_head_moves_every_row_but_positions_still_tell() -> None:
    torch.manual_seed(0)
    base = gpt2(GPT2LMHeadModel).eval()
    told = Fingerprint.of(fine_tuned(base), base)
    assert told.silence is not None and not told.moved.any() and told.longest == 12


def test_rows_that_were_added_are_not_compared(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    teacher = copy.deepcopy(pair[0])
    teacher.resize_token_embeddings(len(TOKENIZER) + 8, mean_resizing=False)
    told = Fingerprint.of(teacher, pair[1])
    assert found(told) == seen() and len(told.moved) == len(TOKENIZER) + 8


def test_models_of_another_width_are_told_apart(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    wide = nn.Embedding(len(TOKENIZER), 48)
    base = copy.deepcopy(pair[1])
    base.set_input_embeddings(wide)
    assert "32 numbers wide, the base's 48" in str(Fingerprint.of(pair[0], base).silence)


def test_a_base_in_few_bits_is_refused(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    with pytest.raises(ValueError, match="is quantized"):
        Fingerprint.of(pair[0], quantize_model(pair[1], "w4a8"))
