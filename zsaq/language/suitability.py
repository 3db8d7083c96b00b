"""How well a text suits a model as calibration text, before any run: from the teacher's own answers.

A teacher that knows what it reads is sure of single texts and says different things of different ones. Both are in one
number, what its answer tells of the text (in nats): the entropy of its mean answer less the mean entropy of its
answers. A text of another domain is told by either: all answers alike, or none of them sure.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zsaq.language.fingerprint import Fingerprint
from zsaq.language.layout import Layout
from zsaq.language.models import printable, task_kind
from zsaq.language.sources import columns
from zsaq.language.text import Text, encode
from zsaq.quant.positions import longest
from zsaq.train.widening import widened

TEXTS: Final = 512  # of which answers are read, drawn at random
BATCH: Final = 32
LONGEST: Final = 128
SUITS: Final = 1 / 3  # of what random tokens lack
COVERED: Final = 0.1  # a class is covered where it gets this part of an even share of the answers

Rows = Sequence[Any]  # texts, or pairs of them


@final
@dataclass(frozen=True)
class Suitability:
    """`texts`, `tokens`: of a text; `alien`: the share of tokens that the teacher was not fine-tuned on, None where its
    base is not known.

    Of a classifier: `information`: what an answer tells of its text, in nats; `entropy`: of the mean answer;
    `doubt`: the mean entropy of an answer; `spread`: deviation of the answers, mean over classes; `coverage`: share of
    the classes that come. Of a regressor `spread` alone. Of a causal model `perplexity`, and `coverage`: share of its
    tokens that come. What does not apply is None.
    """

    texts: int
    tokens: float
    alien: float | None = None
    information: float | None = None
    entropy: float | None = None
    doubt: float | None = None
    spread: float | None = None
    coverage: float | None = None
    perplexity: float | None = None

    @classmethod
    def of(
        cls, teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Rows,
        fingerprint: Fingerprint | None = None, seed: int = 0,
    ) -> "Suitability":  # fmt: skip
        """Of texts, or pairs of them. Raises ValueError for none, for texts without a token, and for a model that is
        neither a classifier, a regressor nor a causal language model."""
        if not len(rows):
            raise ValueError("there are no texts: give some")
        chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:TEXTS].tolist()
        some: list[Any] = [rows[i] for i in chosen]
        contents = [encode(tokenizer, list(column)) for column in columns(some)]
        known = fingerprint if fingerprint is not None and fingerprint.signal else None
        return cls.of_ids(teacher, tokenizer, contents, known.alien(some, tokenizer) if known else None)

    @classmethod
    def of_ids(
        cls, teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, contents: Sequence[Text],
        alien: float | None = None,
    ) -> "Suitability":  # fmt: skip
        """The same of one or two columns of token ids."""
        kind = task_kind(teacher)
        if kind == "embedding":
            raise ValueError(
                f"{type(teacher).__name__} is neither a classifier, a regressor nor a causal language model, so its "
                "answers tell nothing of a text: give a model with a head"
            )
        most = min(LONGEST, longest(teacher) or LONGEST, tokenizer.model_max_length)
        layout = Layout.of(tokenizer, most, text_pair=len(contents) == 2)
        lengths = sum(content.mask.sum(1) for content in contents)
        assert isinstance(lengths, Tensor)
        read = Reading(teacher, kind == "causal")
        for part in lengths.argsort().split(BATCH):
            read.add(layout.place(*(content.rows(part) for content in contents)))
        found = cls(len(lengths), float(lengths.float().mean()), alien, **read.facts())
        return found

    @classmethod
    def of_random(
        cls, teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text_pair: bool = False, seed: int = 0
    ) -> "Suitability":
        """Of random tokens, which need no text: what any text should be better than."""
        words, rng = printable(tokenizer), torch.Generator().manual_seed(seed)
        most = min(LONGEST, longest(teacher) or LONGEST, tokenizer.model_max_length)
        room = max(1, min(40, (most - 4) // (1 + text_pair)))

        def column() -> Text:
            lengths = torch.randint(min(4, room), room + 1, (TEXTS // 2,), generator=rng)
            return Text.of([words[torch.randint(len(words), (n,), generator=rng)].tolist() for n in lengths.tolist()])

        return cls.of_ids(teacher, tokenizer, [column() for _ in range(1 + text_pair)])

    def verdict(self, random: "Suitability") -> str:
        """One line, beside what random tokens come to."""
        strange = "" if self.alien is None else f"; {self.alien:.0%} of its tokens are foreign to the fine-tuning"
        if self.perplexity is not None and random.perplexity is not None:
            share = math.log(max(self.perplexity, 1)) / math.log(max(random.perplexity, 2))
            return (
                f"perplexity {self.perplexity:.1f}, random tokens {random.perplexity:.0f}: {grade(1 - share)}{strange}"
            )
        name = "spread" if self.information is None else "information"
        own, plain = getattr(self, name), getattr(random, name)
        return f"{name} {own:.3f}, random tokens {plain:.3f}: {grade(1 - plain / max(own, 1e-9))}{strange}"


def grade(gain: float) -> str:
    """Of how far a text is from random tokens: 0 as they are, 1 for what they have nothing of."""
    return "suits" if gain >= SUITS else "better than random tokens" if gain > 0 else "no better than random tokens"


class Reading:
    """The teacher's answers, batch by batch."""

    def __init__(self, teacher: PreTrainedModel, causal: bool) -> None:
        self.teacher, self.causal = teacher, causal
        self.said: list[Tensor] = []
        self.loss, self.count = 0.0, 0
        self.seen: set[int] = set()

    @torch.inference_mode()
    def add(self, batch: dict[str, Tensor]) -> None:
        batch = {name: part.to(self.teacher.device) for name, part in batch.items()}
        with widened(self.teacher):
            logits = self.teacher(**batch).logits.float()
        if not self.causal:
            self.said.append(logits.cpu())
            return
        ids, mask = batch["input_ids"][:, 1:], batch["attention_mask"][:, 1:].bool()
        chances = logits[:, :-1].log_softmax(-1).gather(-1, ids[..., None])[..., 0]
        self.loss, self.count = self.loss - float(chances[mask].sum()), self.count + int(mask.sum())
        self.seen |= set(ids[mask].tolist())

    def facts(self) -> dict[str, float]:
        if self.causal:
            perplexity = float(torch.tensor(self.loss / max(self.count, 1)).exp())
            tokens = self.teacher.config.get_text_config().vocab_size
            return {"perplexity": perplexity, "coverage": len(self.seen) / tokens}
        logits = torch.cat(self.said)
        classes = logits.shape[-1]
        if classes == 1:
            return {"spread": float(logits.std(correction=0))}
        answers = logits.softmax(-1)
        entropy, doubt = float(surprise(answers.mean(0))), float(surprise(answers).mean())
        shares = torch.bincount(answers.argmax(-1), minlength=classes) / len(answers)
        return {
            "information": entropy - doubt, "entropy": entropy, "doubt": doubt,
            "spread": float(answers.std(0, correction=0).mean()),
            "coverage": float((shares >= COVERED / classes).float().mean()),
        }  # fmt: skip


def surprise(answers: Tensor) -> Tensor:
    """Entropy in nats [..., C] -> [...]."""
    return torch.special.entr(answers).sum(-1)
