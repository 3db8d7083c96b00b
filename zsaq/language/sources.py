"""Endless batches that need no generator: random tokens, and texts that are given (sampled ones, or the oracle's)."""

from collections.abc import Iterator

import torch
from transformers import PreTrainedTokenizerBase

from zsaq.language.layout import Layout
from zsaq.language.models import printable
from zsaq.language.text import Text, encode, pairs
from zsaq.pair import Batch


def random_tokens(
    tokenizer: PreTrainedTokenizerBase,
    layout: Layout,
    batch_size: int,
    *,
    length: tuple[int, int] = (4, 40),
    seed: int = 0,
) -> Iterator[Batch]:
    """Printable tokens of the teacher, uniform and independent; length[0]..length[1] in each content."""
    tokens, rng = printable(tokenizer), torch.Generator().manual_seed(seed)
    low, high = length
    if not 1 <= low <= high:
        raise ValueError(f"length is {length}; give 1 <= first <= last")

    def content() -> Text:
        ids = tokens[torch.randint(len(tokens), (batch_size, high), generator=rng)]
        limits = torch.randint(low, high + 1, (batch_size, 1), generator=rng)
        return Text(ids, torch.arange(high) < limits)

    while True:
        yield layout.place(*(content() for _ in layout.gaps[1:]))


def texts(
    rows: Text | list[str] | list[tuple[str, str]],
    tokenizer: PreTrainedTokenizerBase,
    layout: Layout,
    batch_size: int,
    *,
    seed: int = 0,
) -> Iterator[Batch]:
    """Given texts or pairs of texts, each once before any comes again. `Text` holds ids of the teacher.

    For a layout of pairs, single texts get partners (`zsaq.language.text.pairs`). Raises ValueError if there are none,
    or for pairs in a layout of single texts.
    """
    if not len(rows):
        raise ValueError("no texts were given")
    contents = [rows] if isinstance(rows, Text) else [encode(tokenizer, list(c)) for c in columns(rows)]
    if len(contents) > len(layout.gaps) - 1:
        raise ValueError("pairs of texts were given, but the layout is for single ones; make it with pair=True")
    rng = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.int64)
    while True:
        while len(order) < batch_size:
            order = torch.cat([order, torch.randperm(len(rows), generator=rng)])
        index, order = order[:batch_size], order[batch_size:]
        chosen = [content.rows(index) for content in contents]
        yield layout.place(*(pairs(chosen[0], rng) if len(chosen) < len(layout.gaps) - 1 else chosen))


def columns(rows: list[str] | list[tuple[str, str]]) -> list[tuple[str, ...]]:
    return list(zip(*((row,) if isinstance(row, str) else row for row in rows), strict=True))
