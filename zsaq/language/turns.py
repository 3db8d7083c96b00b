"""Conversations that a chat model writes all by itself: the user's turn, of which its template gives only the opening,
and its own answer (Xu et al. 2024, Magpie, arXiv 2406.08464)."""

from dataclasses import dataclass
from typing import Final, Self, final

import jinja2
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zsaq.foreign import UNMADE
from zsaq.language.models import Vocabulary
from zsaq.language.sampling import Continued, continued
from zsaq.language.telling import Tell, nobody, part_of
from zsaq.language.text import Text

ASKED, ANSWERED = "Questionhere", "Answerhere"  # stand for the turns while the template is read
SHARE: Final = 4  # the user's turn holds at most one of so many parts of a row


@final
@dataclass(frozen=True)
class Turns:
    """A chat template around one exchange, in token ids: `before` the user's first word, `between` question and answer,
    and `behind` the answer."""

    before: tuple[int, ...]
    between: tuple[int, ...]
    behind: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Self | None:
        """None without a template, and for one that shows no such exchange."""
        if not tokenizer.chat_template:
            return None
        talk = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWERED}]
        try:
            open_, whole = (
                str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt))
                for turns, prompt in ((talk[:1], True), (talk, False))
            )
        except (jinja2.TemplateError, ValueError, *UNMADE):
            return None
        if open_.count(ASKED) != 1 or whole.count(ANSWERED) != 1:
            return None
        before, between = open_.split(ASKED)
        # A space before a word belongs to the word's token.
        parts = (before.rstrip(" "), between.rstrip(" "), whole.split(ANSWERED)[1])
        ids = [tuple(tokenizer(part, add_special_tokens=False)["input_ids"]) for part in parts]
        return cls(*ids) if ids[0] and ids[1] else None

    def write(
        self, model: PreTrainedModel, vocabulary: Vocabulary, n: int, length: int, *, rng: torch.Generator,
        heat: float | Tensor = 1.0, batch_size: int = 256, tell: Tell = nobody,
    ) -> Text:  # fmt: skip
        """`n` conversations of at most `length` tokens, the template's included. `heat`, `rng`, `tell` and what is
        raised: see `continued`. Raises ValueError where the template leaves no room."""
        room = length - len(self.before) - len(self.between)
        if room < 2:
            raise ValueError(
                f"length is {length}, of which the chat template takes {length - room}: give longer rows, or chat=0"
            )
        rows: list[list[int]] = []
        for start in range(0, n, batch_size):
            size = min(batch_size, n - start)
            some = heat[start : start + size] if isinstance(heat, Tensor) else heat
            rows += self._some(model, vocabulary, size, room, some, rng, part_of(tell, start / n, size / n))
        return Text.of(rows, vocabulary.pad).to(model.device)

    def _some(
        self, model: PreTrainedModel, vocabulary: Vocabulary, n: int, room: int, heat: float | Tensor,
        rng: torch.Generator, tell: Tell,
    ) -> list[list[int]]:  # fmt: skip
        def go_on(opened: list[list[int]], limits: list[int], end: tuple[int, ...], tell: Tell) -> list[Continued]:
            stops = torch.zeros(len(vocabulary.content), dtype=torch.bool)
            stops[[*vocabulary.ends, *end[:1]]] = True
            never = ~vocabulary.content.cpu() & ~stops
            return continued(
                model, opened, limits, never=never, stops=stops, heat=heat, rng=rng, pad=vocabulary.pad, tell=tell
            )

        before, between = list(self.before), list(self.between)
        first = go_on([before] * n, [max(1, room // SHARE)] * n, self.between, part_of(tell, 0, 1 / SHARE))
        asked = [each.ids if each.cut else each.ids[:-1] for each in first]  # the template closes the turn
        opened = [before + words + between for words in asked]
        limits = [room - len(words) for words in asked]
        answers = go_on(opened, limits, self.behind, part_of(tell, 1 / SHARE, 1 - 1 / SHARE))
        return [row + answer.ids for row, answer in zip(opened, answers, strict=True)]
