from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertForMaskedLM,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from language_toys import bert, bpe, opt, wordpiece
from zsaq.language.models import (
    Vocabulary,
    block_list,
    printable,
    task_kind,
    token_table,
    token_texts,
)
from zsaq.quant.positions import longest

T5: dict[str, Any] = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}


def gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=16)).eval()


def llama() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    return LlamaForCausalLM(config).eval()


def test_blocks_tables_and_kinds() -> None:
    tokenizer = wordpiece()
    for model, kind in (
        (bert(tokenizer), "classification"),
        (bert(tokenizer, labels=1), "regression"),
        (opt(tokenizer), "causal"),
        (gpt2(), "causal"),
        (llama(), "causal"),
        (BertModel(bert(tokenizer).config), "embedding"),
    ):
        assert len(block_list(model)) == 2 and len({type(b) for b in block_list(model)}) == 1
        assert token_table(model) is model.get_input_embeddings()
        assert task_kind(model) == kind


def test_what_cannot_be_taught_is_refused() -> None:
    with pytest.raises(ValueError, match="neither a causal"):
        task_kind(BertForMaskedLM(bert(wordpiece()).config))
    many = bert(wordpiece())
    many.config.problem_type = "multi_label_classification"
    with pytest.raises(ValueError, match="several labels"):
        task_kind(many)
    with pytest.raises(ValueError, match="no model of transformers"):
        block_list(nn.Linear(2, 2))


def test_longest_counts_from_behind_robertas_padding() -> None:
    config = RobertaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=20, pad_token_id=1,
    )  # fmt: skip
    model = RobertaForSequenceClassification(config).eval()
    limit = longest(model)
    assert limit == 18
    model(input_ids=torch.full((1, limit), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, limit + 1), 5))
    assert longest(gpt2()) == 16
    assert longest(T5ForConditionalGeneration(T5Config(**T5))) is None


def test_a_token_table_as_long_as_the_positions_takes_none_of_them_away() -> None:
    for pad in (0, 19):
        config = LlamaConfig(
            vocab_size=20, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=20, pad_token_id=pad,
        )  # fmt: skip
        assert longest(LlamaForCausalLM(config)) == 20


def test_printable_tokens_show_and_specials_do_not() -> None:
    tokenizer = wordpiece()
    tokens = tokenizer.convert_ids_to_tokens(printable(tokenizer).tolist())
    assert set(tokens) == {t for t in tokenizer.get_vocab() if not t.startswith("[")}
    tokenizer = bpe()
    texts = token_texts(tokenizer)
    assert texts[tokenizer.get_vocab()["Ġfilm"]] == " film"
    assert texts[tokenizer.get_vocab()["Ċ"]] == "\n"
    seen = set(tokenizer.convert_ids_to_tokens(printable(tokenizer).tolist()))
    assert "Ġfilm" in seen and not seen & {"Ċ", "Ġ", "<pad>", "</s>", "Ã"}  # the last is half a character


def test_the_vocabulary_of_a_generator() -> None:
    tokenizer = bpe()
    vocabulary = Vocabulary.of(opt(tokenizer), tokenizer)
    assert (vocabulary.bos, vocabulary.ends, vocabulary.pad) == (1, (1,), 0)
    assert not vocabulary.content[:2].any() and not vocabulary.content[len(tokenizer) :].any()
    assert vocabulary.content[2 : len(tokenizer)].all() and vocabulary.content[vocabulary.printable].all()
    with pytest.raises(ValueError, match="no pair"):
        Vocabulary.of(opt(wordpiece()), tokenizer)
    with pytest.raises(ValueError, match="writes no tokens"):
        Vocabulary.of(bert(tokenizer), tokenizer)
