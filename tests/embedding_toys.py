"""Bare encoders with a tokenizer, and the files that make a model of sentence-transformers of a folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from language_toys import wordpiece

SHAPE: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "initializer_range": 0.3, "max_position_embeddings": 40, "pad_token_id": 0,
}  # fmt: skip
MODERN: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "cls_token_id": 3, "sep_token_id": 4}
DISTIL: dict[str, Any] = {
    "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "initializer_range": 0.3, "max_position_embeddings": 40,
}  # fmt: skip
GPT: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "initializer_range": 0.3}
KINDS: dict[str, Callable[[int], PreTrainedModel]] = {
    "bert": lambda words: BertModel(BertConfig(vocab_size=words, **SHAPE)),
    "mpnet": lambda words: MPNetModel(MPNetConfig(vocab_size=words, **SHAPE)),
    "xlm-roberta": lambda words: XLMRobertaModel(XLMRobertaConfig(vocab_size=words, type_vocab_size=2, **SHAPE)),
    "distilbert": lambda words: DistilBertModel(DistilBertConfig(vocab_size=words, **DISTIL)),
    "modernbert": lambda words: ModernBertModel(ModernBertConfig(vocab_size=words, **SHAPE, **MODERN)),
    "gpt2": lambda words: GPT2Model(GPT2Config(vocab_size=words, **GPT)),
}
POOLING = {"word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
LEGACY = "sentence_transformers.models."


def encoder(kind: str = "bert") -> Any:
    torch.manual_seed(0)
    return KINDS[kind](len(wordpiece())).eval()


def modules(*kinds: str) -> list[dict[str, Any]]:
    return [
        {"idx": i, "name": str(i), "path": "" if i == 0 else f"{i}_{kind}", "type": LEGACY + kind}
        for i, kind in enumerate(kinds)
    ]


def put(folder: Path, name: str, data: Any) -> None:
    (folder / name).parent.mkdir(exist_ok=True, parents=True)
    (folder / name).write_text(data if isinstance(data, str) else json.dumps(data))


def sentence_files(folder: Path, pooling: Any = POOLING, kinds: tuple[str, ...] = ("Pooling", "Normalize")) -> Path:
    put(folder, "modules.json", modules("Transformer", *kinds))
    put(folder, "1_Pooling/config.json", pooling)
    put(folder, "sentence_bert_config.json", {"max_seq_length": 24, "do_lower_case": False})
    put(folder, "config_sentence_transformers.json", {"__version__": {"pytorch": "1.6"}, "prompts": {"query": "q: "}})
    return folder


def sentence_folder(folder: Path, kind: str = "bert", **options: Any) -> Path:
    """A saved encoder with its tokenizer and the files of sentence-transformers."""
    encoder(kind).save_pretrained(folder)
    wordpiece(types=kind in ("bert", "xlm-roberta")).save_pretrained(folder)
    return sentence_files(folder, **options)
