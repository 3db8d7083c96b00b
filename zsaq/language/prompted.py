"""Texts that a causal language model writes after prompts: its chat template, left padding, a key-value cache."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zsaq.language.models import Vocabulary, token_texts
from zsaq.language.sampling import continued
from zsaq.method import alike
from zsaq.quant.positions import longest
from zsaq.train.widening import widened

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
        numbers = alike((temperature, max_tokens, batch_size), (1.0, 1, 1))
        if not numbers or min(temperature, max_tokens, batch_size) <= 0 or not isinstance(chat, bool):
            raise ValueError(
                f"temperature {temperature!r}, max_tokens {max_tokens!r}, batch_size {batch_size!r}, chat {chat!r}: "
                "give numbers above 0, whole ones of tokens and texts, and True or False"
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
            with widened(self.model):
                texts += self._batch([opened[prompt] for prompt in prompts[start : start + self.batch_size]], rng)
            if tell is not None:
                tell(len(texts))
        return texts

    def _batch(self, opened: list[list[int]], rng: torch.Generator) -> list[Written]:
        found = continued(
            self.model, opened, [self.max_tokens] * len(opened), never=self.never, stops=self.stops,
            heat=self.temperature, rng=rng, pad=self.vocabulary.pad,
        )  # fmt: skip
        texts = self.tokenizer.batch_decode(
            [each.ids for each in found], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return [
            Written(trimmed(text, each.cut), each.log_p / max(1, len(each.ids)))
            for text, each in zip(texts, found, strict=True)
        ]


def trimmed(text: str, cut: bool) -> str:
    """A text up to its first quotation mark or end of line; one that was `cut` off, to its last whole sentence."""
    text = re.split(f"[{MARKS}]", text.strip(), maxsplit=1)[0].strip()
    ends = list(END.finditer(text)) if cut else []
    return text[: ends[-1].end()] if ends else text
