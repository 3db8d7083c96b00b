"""Where content stands in a model's input: special tokens, segments, padding; for ids and for embeddings alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from zsaq.language.models import anchor
from zsaq.language.text import Text, filler
from zsaq.train.pair import Batch


@final
@dataclass(frozen=True)
class Layout:
    """The template of one or two contents: `gaps` of special ids before, between and behind them.

    `gap_types` and `types` are the segments of special tokens and contents (None where the model takes no segments).
    """

    gaps: tuple[tuple[int, ...], ...]
    gap_types: tuple[tuple[int, ...], ...] | None
    types: tuple[int, ...] | None
    pad: int
    max_length: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, max_length: int, text_pair: bool = False) -> "Layout":
        """Read the template from what the tokenizer does to a word, or to two.

        Raises ValueError for a slow tokenizer, and if `max_length` holds no content or more than the tokenizer allows.
        """
        if not tokenizer.is_fast:
            raise ValueError(f"{type(tokenizer).__name__} cannot tell special tokens from content; load the fast one")
        word = tokenizer.batch_decode([[anchor(tokenizer)]])[0].strip()
        probe = (
            tokenizer(word, word, return_token_type_ids=True)
            if text_pair
            else tokenizer(word, return_token_type_ids=True)
        )
        gaps: list[list[int]] = [[]]
        gap_types: list[list[int]] = [[]]
        types, before = [], None
        for token, segment, part in zip(probe["input_ids"], probe["token_type_ids"], probe.sequence_ids(), strict=True):
            if part is None:
                gaps[-1].append(token)
                gap_types[-1].append(segment)
            elif part != before:
                types.append(segment)
                gaps.append([])
                gap_types.append([])
                before = part
        taken = sum(map(len, gaps))
        if type(max_length) is not int or not taken + len(types) <= max_length <= tokenizer.model_max_length:
            raise ValueError(
                f"max_length is {max_length}; with {taken} special tokens it must be at least {taken + len(types)} and "
                f"at most the tokenizer's {tokenizer.model_max_length}"
            )
        fixed = tuple(map(tuple, gaps))
        if "token_type_ids" not in tokenizer.model_input_names:
            return cls(fixed, None, None, filler(tokenizer), max_length)
        return cls(fixed, tuple(map(tuple, gap_types)), tuple(types), filler(tokenizer), max_length)

    @property
    def text_pair(self) -> bool:
        return len(self.gaps) == 3

    def place(self, *contents: Text) -> Batch:
        """`input_ids`, `attention_mask` and, if taken, `token_type_ids` [N, T] int64; T is the longest row."""
        index, batch = self._arrange([c.mask for c in contents])
        fixed = self._fixed(index.device).expand(len(index), -1)
        return {"input_ids": torch.cat([fixed, *(c.ids for c in contents)], 1).gather(1, index), **batch}

    def place_soft(self, contents: Sequence[Tensor], masks: Sequence[Tensor], table: Tensor) -> Batch:
        """Content embeddings [N, L, d] with masks [N, L] -> `inputs_embeds` [N, T, d] and the rest as in `place`.

        Special tokens come hard from the teacher's `table` [V, d]. Every position means what it means in `place`.
        """
        index, batch = self._arrange(masks)
        fixed = F.embedding(self._fixed(table.device), table.detach()).expand(len(index), -1, -1)
        bank = torch.cat([fixed, *contents], 1)
        return {"inputs_embeds": bank[torch.arange(len(index), device=index.device)[:, None], index], **batch}

    def _fixed(self, device: torch.device) -> Tensor:
        """Every special token of the template, then the padding: [1, S + 1]."""
        return torch.tensor([[*(i for gap in self.gaps for i in gap), self.pad]], device=device)

    def _arrange(self, masks: Sequence[Tensor]) -> tuple[Tensor, Batch]:
        """For each position of the input where it comes from, in [special tokens, padding, contents...]: [N, T]."""
        if len(masks) != len(self.gaps) - 1:
            raise ValueError(f"the layout places {len(self.gaps) - 1} content(s), {len(masks)} given")
        starts, at = [], 0
        for gap in self.gaps:
            starts.append(at)
            at += len(gap)
        room, pad, begins = self.max_length - at, at, []
        at += 1
        for mask in masks:
            begins.append(at)
            at += mask.shape[1]
        rows: list[list[int]] = []
        segments: list[list[int]] = []
        for lengths in zip(*(mask.sum(1).tolist() for mask in masks), strict=True):
            kept = shortened(list(lengths), room)
            row, types = [], []
            for number, gap in enumerate(self.gaps):
                if number:
                    row += range(begins[number - 1], begins[number - 1] + kept[number - 1])
                    types += [self.types[number - 1]] * kept[number - 1] if self.types else []
                row += range(starts[number], starts[number] + len(gap))
                types += self.gap_types[number] if self.gap_types else ()
            rows.append(row)
            segments.append(types)
        device = masks[0].device
        index = Text.of(rows, pad)
        batch = {"attention_mask": index.mask.long().to(device)}
        if self.types is not None:
            batch["token_type_ids"] = Text.of(segments).ids.to(device)
        return index.ids.to(device), batch


def shortened(lengths: list[int], room: int) -> list[int]:
    """Lengths cut to `room` tokens in all, from the longest first."""
    while (over := sum(lengths) - room) > 0:
        longest = lengths.index(max(lengths))
        others = [n for i, n in enumerate(lengths) if i != longest]
        lengths[longest] -= min(over, max(1, lengths[longest] - max(others, default=0)))
    return lengths
