"""The generator as the student's source: an endless stream of batches of what it writes."""

import math
from collections import deque
from typing import Any, Self, final

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zsaq.language.bridge import Bridge, BridgeKind, bridge_for
from zsaq.language.layout import Layout
from zsaq.language.models import Vocabulary
from zsaq.language.telling import Tell, Telling, part_of
from zsaq.language.text import Text, similar, text_pairs
from zsaq.language.turns import Turns
from zsaq.language.writing import check_generator, check_style, write
from zsaq.method import alike
from zsaq.train.pair import Batch
from zsaq.train.randomness import generator as generator_of


@final
class TextGenerator:
    """An endless iterator of batches of ids for the student.

    For every `refresh` batches new texts are written, each of which is used once. Once the generator has climbed (see
    `zsaq.language.ascent.Ascent`) only a share `fresh` of what the batches hold is new; the rest, so that students do
    not forget what the generator has left, comes from a replay buffer of the `capacity` newest texts. Rows of similar
    length share a batch. Without any ascent this is LLM-QAT's sampled text, and the model that writes is read alone: it
    may be the teacher itself.

    Texts are sampled from the begin token on: with one declared case (MiniLM on SST-2, W2A8) that came closer to the
    teacher than LLM-QAT's uniform first token and greedy start (KL 0.110 against 0.125), which `greedy` and
    `uniform_start` switch on. Give each of several processes a seed of its own.

    `chat`: the share of conversations (`Turns`), where the generator has a chat template; they are not translated, so
    the teacher has to speak the generator's tokens.

    `length`, `greedy`, `temperature`, `uniform_start` go to `write`. The generator is used in eval mode, on one device
    with the teacher. The same seed gives the same run. Raises ValueError for a share or a buffer that cannot be.
    """

    def __init__(
        self,
        generator: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        bridge: Bridge,
        layout: Layout,
        *,
        batch_size: int = 32,
        length: int | tuple[int, int] = (4, 40),
        greedy: tuple[int, int] = (0, 0),
        temperature: float = 1.0,
        uniform_start: bool = False,
        chat: float = 0.0,
        refresh: int = 10,
        fresh: float = 0.75,
        capacity: int = 20_000,
        seed: int = 0,
    ) -> None:
        if not alike(chat, 0.0) or chat > 1:
            raise ValueError(f"chat is {chat!r}; give the share of conversations, from 0 to 1")
        counts = (batch_size, refresh, capacity)
        fits = alike(counts, (1, 1, 1)) and min(counts) >= 1 and capacity >= refresh * batch_size
        if not fits or not alike(fresh, 1.0) or not 0 < fresh <= 1:
            raise ValueError(
                f"fresh is {fresh!r}; it must lie above 0 and at most at 1, batch_size {batch_size!r} and refresh "
                f"{refresh!r} must be integers of at least 1, and capacity {capacity!r} at least their product"
            )
        check_style(length, greedy, temperature, uniform_start)
        check_generator(generator)
        self.generator, self.bridge, self.layout = generator.eval(), bridge, layout
        self.vocabulary = Vocabulary.of(generator, tokenizer)
        self.batch_size, self.refresh, self.fresh = batch_size, refresh, fresh
        self.style = {"length": length, "greedy": greedy, "temperature": temperature, "uniform_start": uniform_start}
        self.turns = Turns.of(tokenizer) if chat else None
        self.chat = 0.0 if self.turns is None else chat
        self.rng = generator_of(seed)
        self.buffer: deque[list[int]] = deque(maxlen=capacity)
        self.ready: list[Text] = []
        self.started = False
        self.replays = False  # set by the first ascent
        self.renew()

    @classmethod
    def of(
        cls,
        generator: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        teacher: PreTrainedModel,
        teacher_tokenizer: PreTrainedTokenizerBase,
        *,
        kind: BridgeKind = "auto",
        max_length: int = 128,
        text_pair: bool = False,
        **options: Any,
    ) -> Self:
        """A text generator for a teacher: bridge of that `kind`, layout of one text or a `text_pair`, on the teacher's
        device."""
        bridge = bridge_for(tokenizer, teacher_tokenizer, teacher, kind).to(teacher.device)
        layout = Layout.of(teacher_tokenizer, min(max_length, teacher_tokenizer.model_max_length), text_pair)
        generator.to(teacher.device)  # type: ignore[arg-type]
        return cls(generator, tokenizer, bridge, layout, **options)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        if not self.ready:
            if self.started:
                self.renew()
            self.started = True
            self.ready = self.gather()
        text = self.ready.pop()
        return self.layout.place(*(text_pairs(text, self.rng) if self.layout.text_pair else (text,)))

    def state_dict(self) -> dict[str, Any]:
        """What is written and not yet read, and what may be read again; the stream of random numbers is the run's."""
        texts = [self.newest, self.translated, Text.of(list(self.buffer)), *self.ready]
        pairs = [(text.ids, text.mask) for text in texts]
        return {"texts": pairs, "started": self.started, "replays": self.replays}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        device = self.newest.ids.device
        self.newest, self.translated, past, *ready = (Text(*pair).to(device) for pair in state_dict["texts"])
        self.buffer = deque(past.lists(), self.buffer.maxlen)
        self.ready, self.started, self.replays = ready, state_dict["started"], state_dict["replays"]

    def gather(self) -> list[Text]:
        """The next `refresh` batches: the newest texts, and what is missing from those before them."""
        missing = self.refresh * self.batch_size - len(self.translated)
        past = len(self.buffer) - len(self.translated)
        text = self.translated
        if missing:
            old = [self.buffer[i] for i in torch.randperm(past, generator=self.rng)[:missing].tolist()]
            text = Text.cat([text, Text.of(old).to(text.ids.device)])
        return [text.rows(index) for index in similar(text.mask.sum(1), self.batch_size, self.rng)]

    def renew(self) -> None:
        """Let the generator write; `newest` in its vocabulary, `translated` and the buffer in the teacher's."""
        n = self.refresh * self.batch_size
        rows = math.ceil(self.fresh * n) if self.replays else n
        with Telling(f"writing {rows} texts") as tell:
            self.newest = self.written(rows, tell)
        self.translated = self.bridge.ids(self.newest)
        self.buffer.extend(self.translated.lists())

    def written(self, rows: int, tell: Tell) -> Text:
        """So many texts of the generator's: conversations first, then what it writes from the begin token on."""
        talks = round(self.chat * rows)
        parts: list[Text] = []
        share = talks / rows
        if self.turns is not None and talks:
            length, gap = self.layout.max_length, len(self.layout.gaps[0])
            talk = self.turns.write(
                self.generator, self.vocabulary, talks, length, rng=self.rng, tell=part_of(tell, 0, share)
            )
            opens = self.turns.before[:gap] == self.layout.gaps[0]  # the layout places it
            parts.append(Text(talk.ids[:, gap:], talk.mask[:, gap:]) if opens else talk)
        if rows - talks:
            style = {"tell": part_of(tell, share, 1 - share), **self.style}
            parts.append(write(self.generator, self.vocabulary, rows - talks, rng=self.rng, **style))
        return parts[0] if len(parts) == 1 else Text.cat(parts, self.vocabulary.pad)
