"""A toy base with many words, and what a few steps on some of them make of it."""

import copy
import inspect
from itertools import product
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from language_toys import wordpiece

KNOWN, STRANGE = (tuple("".join(letters) for letters in product(start, "aeiou", "lmnrst", "aeiou")) for start in "bd")
"""Words that toys are fine-tuned on, and words that they never see."""


def words() -> PreTrainedTokenizerFast:
    return wordpiece((*KNOWN, *STRANGE))


def fine_tuned(
    base: PreTrainedModel, length: int = 12, pairs: bool = False, steps: int = 30, lr: float = 1e-3, **more: Any
) -> PreTrainedModel:
    """The base after steps of AdamW with weight decay on texts of KNOWN words alone, the longest with `length` tokens,
    special ones included, in batches with padding. `more`: what the model reads beside ids and mask."""
    model, tokenizer = copy.deepcopy(base).train(), words()
    rng = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr, weight_decay=0.1)
    for step in range(steps):
        lengths = [length, *torch.randint(5, length + 1, (7,), generator=rng).tolist()]
        texts = [
            " ".join(KNOWN[(step * 37 + 11 * row + i) % len(KNOWN)] for i in range(n - 2))
            for row, n in enumerate(lengths)
        ]
        if pairs:
            halves = [text.split() for text in texts]
            texts = [(" ".join(w[: len(w) // 2]), " ".join(w[len(w) // 2 : -1])) for w in halves]
        batch = tokenizer(texts, padding=True, return_tensors="pt")  # pyright: ignore[reportArgumentType]
        takes = inspect.signature(type(model).forward).parameters
        logits = model(**{name: value for name, value in batch.items() if name in takes}, **more).logits
        loss = nn.functional.cross_entropy(
            logits.flatten(0, -2), torch.arange(logits[..., 0].numel()) % logits.shape[-1]
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()
