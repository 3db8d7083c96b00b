"""Rows of token ids without special tokens, and pairs made of them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase


@final
@dataclass(frozen=True)
class Text:
    """`ids` [N, L] int64 and `mask` [N, L] bool: True where content stands, which is left-aligned."""

    ids: Tensor
    mask: Tensor

    def __post_init__(self) -> None:
        assert self.ids.shape == self.mask.shape and self.ids.ndim == 2 and self.mask.dtype == torch.bool

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, index: Tensor) -> Self:
        """The chosen rows, as wide as the longest of them."""
        mask = self.mask[index]
        width = int(mask.sum(1).amax()) if len(mask) else 0
        return type(self)(self.ids[index, :width], mask[:, :width])

    def to(self, device: torch.device) -> Self:
        return type(self)(self.ids.to(device), self.mask.to(device))

    def lists(self) -> list[list[int]]:
        return [ids[:n] for ids, n in zip(self.ids.tolist(), self.mask.sum(1).tolist(), strict=True)]

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], pad: int = 0) -> Self:
        """From lists of ids, padded to the longest."""
        width = max(map(len, rows), default=0)
        ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], dtype=torch.int64)
        lengths = torch.tensor([len(row) for row in rows])
        return cls(ids.view(len(rows), width), torch.arange(width) < lengths[:, None])

    @classmethod
    def cat(cls, texts: Iterable[Self], pad: int = 0) -> Self:
        """All rows, one text below the other."""
        texts = list(texts)
        width = max(text.ids.shape[1] for text in texts)
        missing = [width - text.ids.shape[1] for text in texts]
        ids = [torch.nn.functional.pad(t.ids, (0, m), value=pad) for t, m in zip(texts, missing, strict=True)]
        mask = [torch.nn.functional.pad(t.mask, (0, m), value=False) for t, m in zip(texts, missing, strict=True)]
        return cls(torch.cat(ids), torch.cat(mask))


def similar(lengths: Tensor, size: int, rng: torch.Generator) -> Iterator[Tensor]:
    """Indices [size] of rows of similar `lengths` [N], batch by batch in random order, so that little is padding.

    Where `size` does not divide N, the rest (of the longest rows) is left out.
    """
    noise = torch.rand(len(lengths), generator=rng)  # equal lengths meet in another order each time
    order = torch.argsort(lengths.cpu() + noise)
    for batch in torch.randperm(len(lengths) // size, generator=rng).tolist():
        yield order[batch * size : (batch + 1) * size]


def filler(tokenizer: PreTrainedTokenizerBase) -> int:
    """What stands where nothing stands: the padding id, or, behind a mask, the end of text or 0."""
    return next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if isinstance(i, int)), 0)


def encode(tokenizer: PreTrainedTokenizerBase, rows: list[str]) -> Text:
    """Strings as content ids. What holds no token becomes one unknown token, so that no row is empty."""
    ids = tokenizer(rows, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return Text.of([row or [unknown(tokenizer)] for row in ids], filler(tokenizer))


def unknown(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id for what a vocabulary cannot say. Raises ValueError if it has none."""
    token = next((i for i in (tokenizer.unk_token_id, tokenizer.eos_token_id) if isinstance(i, int)), None)
    if token is None:
        raise ValueError("the tokenizer has neither an unknown token nor an end of text; set tokenizer.unk_token")
    return token


@final
@dataclass(frozen=True)
class Partner:
    """For each row of a batch a second one: `row` [N], and where its tokens stand, `column` and `mask` [N, L]."""

    row: Tensor
    column: Tensor
    mask: Tensor

    @classmethod
    def of(cls, mask: Tensor, rng: torch.Generator, drop: float = 0.15) -> Self:
        """Half the rows get a noisy copy of themselves (each token dropped with probability `drop`, one always left),
        so that equivalent pairs exist; the others get another row. `mask` [N, L] bool."""
        n, device = len(mask), mask.device
        copies = torch.rand(n, generator=rng) < 0.5
        shift = int(torch.randint(1, max(n, 2), (), generator=rng))
        row = torch.where(copies, torch.arange(n), (torch.arange(n) + shift) % n).to(device)
        chance = torch.rand(mask.shape, generator=rng).to(device)
        chance[:, 0] = torch.where(((chance >= drop) & mask[row]).any(1), chance[:, 0], 1.0)
        kept = mask[row] & ((chance >= drop) | ~copies.to(device)[:, None])
        return cls(row, torch.argsort(~kept, dim=1, stable=True), kept.sort(dim=1, descending=True).values)

    def take(self, values: Tensor) -> Tensor:
        """[N, L, ...] of the batch -> [N, L, ...] of the partners."""
        return values[self.row[:, None], self.column]


def text_pairs(text: Text, rng: torch.Generator) -> tuple[Text, Text]:
    """Sentence pairs from single rows: (a, b), see `Partner.of`."""
    partner = Partner.of(text.mask, rng)
    return text, Text(partner.take(text.ids), partner.mask)
