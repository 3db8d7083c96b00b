"""A tiny classifier with its tokenizer, and rows of GLUE in files, for the tests of eval/glue.py."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from zsaq.eval import TASKS

WORDS = "[PAD] [UNK] [CLS] [SEP] a good bad film plays well not very dull fun".split()
SENTENCES = [
    "a good film",
    "bad",
    "a very very dull film",
    "fun",
    "not good",
    "plays well a very good fun film",
    "dull",
]
Folder = Callable[..., str]


def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    pair = "[CLS] $A [SEP] $B:1 [SEP]:1"
    special = [("[CLS]", 2), ("[SEP]", 3)]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair=pair, special_tokens=special)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", model_max_length=32)


def teacher(labels: int = 2, seed: int = 0, **config) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    small: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    settings: dict[str, Any] = {
        "vocab_size": len(WORDS),
        "max_position_embeddings": 32,
        "num_labels": labels,
        "initializer_range": 1.0,
    }
    return BertForSequenceClassification(BertConfig(**small, **settings, **config)).eval()


@pytest.fixture
def saved(tmp_path: Path) -> Folder:
    """Writes a tiny model and its tokenizer, returns the folder."""

    def save(name: str = "model", labels: int = 2, seed: int = 0, **config) -> str:
        teacher(labels, seed, **config).save_pretrained(tmp_path / name)
        tokenizer().save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return save


def rows(task: str, count: int = 7) -> list[dict]:
    """Rows of the task with labels that go round."""
    kinds = len(TASKS[task].labels) or 6
    text = [[SENTENCES[(i + k) % 7] for k in range(len(TASKS[task].columns))] for i in range(count)]
    return [dict(zip(TASKS[task].columns, text[i], strict=True), label=i % kinds, idx=i) for i in range(count)]


def write(file: Path, content: list[dict]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".parquet":
        datasets.Dataset.from_list(content).to_parquet(file)
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in content))
    else:
        lines = [list(content[0]), *[[str(value) for value in row.values()] for row in content]]
        file.write_text("".join("\t".join(line) + "\n" for line in lines))
