"""Prompts for text that fits a teacher, when nobody names any: from its labels, its name, its card, its weights."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from transformers import PreTrainedModel

from zsaq.language.kinds import KINDS, RELATIONS, article, kinds_named, openings, relations_named, spoken, words_of

WORDS: Final = 200  # of the words that moved most, how many are written about


@final
@dataclass(frozen=True)
class Prompts:
    """What a generator is asked to go on from: `first`, drawn at random, and for pairs `second`, where {first} stands
    for the first text. `origin`: in words, what they were made of. Raises ValueError for none and for blank ones."""

    first: tuple[str, ...]
    origin: str
    second: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for line in (*self.first, *self.second):
            if not isinstance(line, str) or not line.strip():
                raise ValueError(f"a prompt is {line!r:.80}; give text, such as 'One sentence from a film review:'")
        if not self.first:
            raise ValueError("no prompt was given; give at least one, or None for automatic ones")

    @classmethod
    def given(cls, prompts: Sequence[str], text_pair: bool = False) -> "Prompts":
        """A person's own. For pairs those with {first} ask for the second text; where there are none, all relations."""
        if isinstance(prompts, str) or not isinstance(prompts, Sequence):
            raise ValueError(f"prompts is {prompts!r:.120}; give a list of texts")
        second = tuple(prompt for prompt in prompts if isinstance(prompt, str) and "{first}" in prompt)
        if second and not text_pair:
            raise ValueError(f"{second[0]!r:.120} asks for the second text of a pair: say text_pair=True (--text_pair)")
        first = tuple(prompt for prompt in prompts if prompt not in second)
        return cls(first, "given", (second or tuple(RELATIONS.values())[:4]) if text_pair else ())


@final
@dataclass(frozen=True)
class Known:
    """Words about a teacher: its `labels`, as people say them, the `words` of its name and card, and those of all its
    label names, `answers`."""

    labels: tuple[str, ...] = ()
    words: frozenset[str] = frozenset()
    answers: frozenset[str] = frozenset()

    @classmethod
    def of(cls, teacher: PreTrainedModel, source: str = "", card: Mapping[str, Any] | None = None) -> "Known":
        """`source`: its path or id; `card`: the metadata of its card, of which tags and the names of data sets are
        read: texts that stand there as examples may be real, and are not."""
        named: Any = teacher.config.id2label
        names = [str(name) for name in named.values()][:512] if isinstance(named, Mapping) else []
        labels = tuple(dict.fromkeys(filter(None, map(spoken, names))))
        texts = [Path(os.path.expanduser(source)).name]
        for key in ("tags", "datasets", "pipeline_tag", "base_model", "model_name"):
            value = (card or {}).get(key)
            texts += [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, str)][:64]
        words = (frozenset(words_of(text[:200] for text in some)) for some in (texts, names))
        return cls(labels, *words)

    @property
    def relations(self) -> tuple[str, ...]:
        """Of the two texts that the teacher compares; () where nothing points at pairs."""
        return relations_named({*self.words, *self.answers})


def automatic(known: Known, kinds: Sequence[str], why: str, words: Sequence[str] = (), pair: bool = False) -> Prompts:
    """Prompts for these `kinds`, each label in turn, and with `words` to write about. A pair's labels are about both
    texts, and say nothing of the first."""
    relations = known.relations or tuple(RELATIONS)[:4]
    labels = () if pair and known.relations else known.labels
    lines = [line for kind in kinds for label in (labels or (None,)) for line in openings(kind, label)]
    origin = [why]
    if labels:
        origin.append(f"labels {', '.join(labels[:12])}")
    if words:
        kept = list(words)[:WORDS]
        about = [
            f"One sentence from {article(kinds[i % len(kinds)])}, with the words {a} and {b}:"
            for i, (a, b) in enumerate(zip(kept[::2], kept[1::2], strict=False))
        ]
        lines = lines * max(1, round(len(about) / len(lines))) + about  # as many with words as without
        origin.append(f"words that the weights remember: {', '.join(kept[:8])}, ...")
    second = tuple(RELATIONS[relation] for relation in relations) if pair else ()
    return Prompts(tuple(lines), "automatic: " + "; ".join(origin), second)


def named_kinds(known: Known) -> list[str]:
    return kinds_named(set(known.words))


def candidates() -> list[str]:
    """Every kind of text that a generator can be asked for."""
    return list(KINDS)
