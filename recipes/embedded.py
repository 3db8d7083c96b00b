"""The embedded default of `zsaq_bert_w2a8.py`: a task, a teacher and a generator made on the spot, without a download.

The task is to tell from one sentence which area of Python it documents (`embedded_corpus.py`). The teacher, a small BERT
classifier, learns it from docstrings; the generator, a small OPT with the teacher's tokens, learns English from comments
and never sees a sentence of the task. Both are trained once, in under two minutes on two cores, and cached.
"""

import hashlib
import json
import math
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from embedded_corpus import Corpus, read
from tokenizers import BertWordPieceTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    get_linear_schedule_with_warmup,
)

VOCABULARY = 4000
LENGTH = 64
Example = tuple[list[int], list[int] | int]


@dataclass
class Embedded:
    """`test`: rows {"sentence": str, "label": int}, label an index into `names`; models in eval mode, on the CPU.

    `unlabeled` are the teacher's own training sentences: for the oracle alone, which is not zero-shot.
    """

    teacher: BertForSequenceClassification
    tokenizer: PreTrainedTokenizerFast
    generator: OPTForCausalLM
    test: list[dict]
    unlabeled: list[str]
    names: list[str]


def train_tokenizer(sentences: list[str]) -> PreTrainedTokenizerFast:
    wordpiece = BertWordPieceTokenizer(lowercase=True)
    wordpiece.train_from_iterator(sentences, vocab_size=VOCABULARY, min_frequency=2, show_progress=False)
    first, last = (str(wordpiece.id_to_token(wordpiece.token_to_id(token))) for token in ("[CLS]", "[SEP]"))
    ends = [(token, wordpiece.token_to_id(token)) for token in (first, last)]
    wordpiece.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=ends)
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return PreTrainedTokenizerFast(
        tokenizer_object=wordpiece._tokenizer,
        bos_token="[CLS]",
        eos_token="[SEP]",
        model_max_length=LENGTH,
        model_input_names=["input_ids", "attention_mask"],
        **special,
    )


def batches(examples: list[Example], size: int, pad: int, seed: int) -> Iterator[dict[str, torch.Tensor]]:
    """Endless shuffled batches of similar lengths: `input_ids`, `attention_mask` [size, length], `labels`; int64."""
    rng = random.Random(seed)
    while True:
        order = rng.sample(examples, len(examples))
        for start in range(0, len(order), size * 20):
            pool = sorted(order[start : start + size * 20], key=lambda example: len(example[0]))
            groups = [pool[i : i + size] for i in range(0, len(pool), size)]
            for group in rng.sample(groups, len(groups)):
                width = max(len(ids) for ids, _ in group)
                fill = lambda rows, value: [row + [value] * (width - len(row)) for row in rows]  # noqa: B023, E731
                labels = [label for _, label in group]
                yield {
                    "input_ids": torch.tensor(fill([ids for ids, _ in group], pad)),
                    "attention_mask": torch.tensor(fill([[1] * len(ids) for ids, _ in group], 0)),
                    "labels": torch.tensor(labels if isinstance(labels[0], int) else fill(labels, -100)),
                }


def fit(model, examples: list[Example], *, epochs: float, lr: float, size: int, decay: float, name: str, log) -> None:
    """Plain supervised training with AdamW; a progress line every tenth of the way."""
    steps = math.ceil(epochs * len(examples) / size)
    optimizer = torch.optim.AdamW(model.parameters(), lr, betas=(0.9, 0.98), weight_decay=decay)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    stream, begin, total = batches(examples, size, model.config.pad_token_id, seed=0), time.time(), 0.0
    model.train()
    for step in range(1, steps + 1):
        loss = model(**next(stream)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        total += loss.item()
        if step % max(1, steps // 10) == 0:
            log(f"{name}: step {step}/{steps}  loss {total / max(1, steps // 10):.3f}  {time.time() - begin:.0f} s")
            total = 0.0
    model.eval()
