"""Texts that a causal language model writes after prompts: its chat template, left padding, a key-value cache."""

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zsaq.language.models import Vocabulary, longest, token_texts
from zsaq.language.writing import draw
from zsaq.train.optim import NotFinite

MARKS: Final = '"\u201c\u201d\u00ab\u00bb\u201e\n'  # a text ends where its quotation or its line does
END: Final = re.compile(r"[.!?\u2026\u3002\uff01\uff1f][)'\u2019\]]*(?=\s|$)")


@final
@dataclass(frozen=True)
class Written:
    """One text, and how fluent its writer found it: the mean log probability of its tokens, in nats."""

    text: str
    fluency: float


@final
class PromptedWriter:
    """A causal model that goes on after prompts, each of which opens a quotation.

    Where its tokenizer has a chat template the prompt is the user's turn and the model's begins with the quotation
    mark (`chat` False leaves the template off, which suits models that were made to go on). What it writes ends at a
    quotation mark, a line's end, its own end of text or after `max_tokens`; a text that is cut off there is cut back to
    its last whole sentence, if it has one. The model is used as it is, in its own dtype. Raises ValueError for numbers
    that cannot be, and for prompts longer than the model reads.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        temperature: float = 1.0,
        max_tokens: int = 48,
        batch_size: int = 128,
        chat: bool = True,
    ) -> None:
        if not 0 < temperature < float("inf") or max_tokens < 1 or batch_size < 1:
            raise ValueError(
                f"temperature {temperature}, max_tokens {max_tokens}, batch_size {batch_size}: give numbers above 0"
            )
        self.model, self.tokenizer = model.eval(), tokenizer
        self.vocabulary = Vocabulary.of(model, tokenizer)
        self.temperature, self.max_tokens, self.batch_size = temperature, max_tokens, batch_size
        self.chat = chat and bool(tokenizer.chat_template)
        rows, content = len(self.vocabulary.content), self.vocabulary.content.cpu()
        marks = [i for i, text in enumerate(token_texts(tokenizer)) if any(mark in text for mark in MARKS)]
        self.stops = torch.zeros(rows, dtype=torch.bool)
        self.stops[marks] = True
        self.stops[list(self.vocabulary.ends)] = True
        self.never = ~content
        self.never[list(self.vocabulary.ends)] = False
        self.takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def opened(self, prompt: str) -> list[int]:
        """The ids that stand before a text of this prompt."""
        asked = prompt.rstrip()
        if self.chat:
            turn: Any = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": asked.removesuffix(":")}], tokenize=False, add_generation_prompt=True
            )
            return self.tokenizer(f'{turn}"', add_special_tokens=False)["input_ids"]
        ids = self.tokenizer(f'{asked} "', add_special_tokens=False)["input_ids"]
        return [self.vocabulary.bos, *ids]

    def write(
        self, prompts: Sequence[str], rng: torch.Generator, tell: Callable[[int], None] | None = None
    ) -> list[Written]:
        """One text for each prompt, some of them empty; `tell` hears how many are done. `rng` lives on the CPU, and the
        same seed writes the same texts. Raises NotFinite for a model whose answers are not finite."""
        opened = {prompt: self.opened(prompt) for prompt in dict.fromkeys(prompts)}
        limit, most = longest(self.model), max(map(len, opened.values()), default=0)
        if limit is not None and most + self.max_tokens > limit:
            raise ValueError(
                f"a prompt of {most} tokens and {self.max_tokens} more are beyond the {limit} positions of "
                f"{type(self.model).__name__}: give shorter prompts or fewer max_tokens"
            )
        texts: list[Written] = []
        for start in range(0, len(prompts), self.batch_size):
            texts += self._batch([opened[prompt] for prompt in prompts[start : start + self.batch_size]], rng)
            if tell is not None:
                tell(len(texts))
        return texts

    @torch.no_grad()
    def _batch(self, opened: list[list[int]], rng: torch.Generator) -> list[Written]:
        n, device, width = len(opened), self.model.device, max(map(len, opened))
        pad = self.vocabulary.pad
        current = torch.tensor([[pad] * (width - len(ids)) + ids for ids in opened], device=device)
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in opened], device=device)
        written: list[list[int]] = [[] for _ in range(n)]
        total, rows, cache = torch.zeros(n), torch.arange(n), None
        cut = torch.ones(n, dtype=torch.bool)  # ended by its length alone
        going = torch.ones(n, dtype=torch.bool)
        stops, never = self.stops, self.never.to(device)
        for place in range(self.max_tokens):
            positions = {"position_ids": (mask.cumsum(1) - 1).clamp_min(0)[:, -current.shape[1] :]}
            out = self.model(
                input_ids=current, attention_mask=mask, past_key_values=cache, use_cache=True,
                **(positions if self.takes_positions else {}),
            )  # fmt: skip
            cache = out.past_key_values
            logits = out.logits[:, -1].float()
            if not logits.amax(-1).isfinite().all():
                raise NotFinite(
                    f"the answers of the generator {type(self.model).__name__} are not finite: take another generator"
                )
            logits.masked_fill_(never if place else never | stops.to(device), -torch.inf)
            chance = torch.rand(2, n, 1, generator=rng, dtype=torch.float64)[:, rows].to(device)
            current = draw(logits if self.temperature == 1 else logits / self.temperature, chance)
            log_p = logits.gather(1, current)[:, 0] - logits.logsumexp(-1)
            for row, token, value in zip(rows.tolist(), current[:, 0].tolist(), log_p.tolist(), strict=True):
                if going[row]:
                    written[row].append(token)
                    total[row] += value
                    if stops[token]:
                        going[row], cut[row] = False, False
            if not going.any():
                break
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            held = going[rows]
            if 8 * int(held.sum()) <= 7 * len(rows):  # finished rows leave the cache
                cache.batch_select_indices(held.nonzero()[:, 0].to(device))
                rows, current, mask = rows[held], current[held.to(device)], mask[held.to(device)]
        texts = self.tokenizer.batch_decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        counts = [max(1, len(ids)) for ids in written]
        return [
            Written(trimmed(text, short), value / count)
            for text, short, value, count in zip(texts, cut.tolist(), total.tolist(), counts, strict=True)
        ]


def trimmed(text: str, cut: bool) -> str:
    """A text up to its first quotation mark or end of line; one that was `cut` off, to its last whole sentence."""
    text = re.split(f"[{MARKS}]", text.strip(), maxsplit=1)[0].strip()
    ends = list(END.finditer(text)) if cut else []
    return text[: ends[-1].end()] if ends else text
