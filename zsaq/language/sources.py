"""Endless batches that need no generator: random tokens, given texts, given batches."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from transformers import PreTrainedTokenizerBase

from zsaq.language.layout import Layout
from zsaq.language.models import printable
from zsaq.language.text import Text, encode, similar, text_pairs
from zsaq.train.pair import Batch
from zsaq.train.randomness import generator

POOL = 10  # batches that are drawn together, so that each can hold rows of similar length


def random_tokens(
    tokenizer: PreTrainedTokenizerBase,
    layout: Layout,
    batch_size: int,
    *,
    length: tuple[int, int] = (4, 40),
    seed: int = 0,
) -> Iterator[Batch]:
    """Printable tokens of the teacher, uniform and independent; length[0]..length[1] in each content."""
    tokens, rng = printable(tokenizer), generator(seed)
    low, high = length
    if not 1 <= low <= high:
        raise ValueError(f"length is {length}; give 1 <= first <= last")

    while True:
        lengths = torch.randint(low, high + 1, (POOL * batch_size, len(layout.gaps) - 1), generator=rng)
        for index in similar(lengths.sum(1), batch_size, rng):
            masks = [torch.arange(high) < each[:, None] for each in lengths[index].unbind(1)]
            ids = [tokens[torch.randint(len(tokens), mask.shape, generator=rng)] for mask in masks]
            contents = [Text(i, mask).rows(torch.arange(batch_size)) for i, mask in zip(ids, masks, strict=True)]
            yield layout.place(*contents)


def texts(
    rows: Text | list[str] | list[tuple[str, str]],
    tokenizer: PreTrainedTokenizerBase,
    layout: Layout,
    batch_size: int,
    *,
    seed: int = 0,
) -> Iterator[Batch]:
    """Given texts or pairs of texts, one pass over them after the other, rows of similar length together.

    `rows`: strings, pairs of strings, or ids of the teacher as `Text`.

    For a layout of pairs, single texts get partners (`zsaq.language.text.text_pairs`). Raises ValueError if there are
    none, or for pairs in a layout of single texts.
    """
    if not len(rows):
        raise ValueError("no texts were given")
    contents = [rows] if isinstance(rows, Text) else [encode(tokenizer, list(c)) for c in columns(rows)]
    if len(contents) > len(layout.gaps) - 1:
        raise ValueError("pairs of texts were given, but the layout is for single ones; make it with text_pair=True")
    rng = generator(seed)
    lengths = torch.stack([content.mask.sum(1) for content in contents]).sum(0)
    order = torch.empty(0, dtype=torch.int64)
    size = batch_size * max(1, min(POOL, len(rows) // batch_size))
    while True:
        while len(order) < size:
            order = torch.cat([order, torch.randperm(len(rows), generator=rng)])
        pool, order = order[:size], order[size:]
        for index in similar(lengths[pool], batch_size, rng):
            chosen = [content.rows(pool[index]) for content in contents]
            yield layout.place(*(text_pairs(chosen[0], rng) if len(chosen) < len(layout.gaps) - 1 else chosen))


def over_and_over(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Given batches without end: an iterator as it is, to its end; anything else pass after pass (a DataLoader draws
    its order anew). Raises ValueError for a pass without any, and for a batch that is no keyword arguments."""
    while True:
        batch = None
        for batch in batches:
            if not isinstance(batch, Mapping):
                raise ValueError(f"a batch is a {type(batch).__name__}; give dicts of tensors: input_ids, ...")
            yield dict(batch)
        if isinstance(batches, Iterator):
            return
        if batch is None:
            raise ValueError("no batches were given")


def columns(rows: list[str] | list[tuple[str, str]]) -> list[tuple[str, ...]]:
    return list(zip(*((row,) if isinstance(row, str) else row for row in rows), strict=True))
