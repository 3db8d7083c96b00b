"""Which kinds of text suit a teacher that nobody describes: a few of each are written, and its own answers tell."""

from typing import Any, Final

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zsaq.language.chunks import drawn
from zsaq.language.fingerprint import Fingerprint
from zsaq.language.kinds import KINDS, RELATIONS, openings
from zsaq.language.prompted import PromptedWriter
from zsaq.language.suitability import Suitability
from zsaq.train.logging import say

EACH: Final = 24  # texts of a kind
TAKEN: Final = 4  # kinds


def chosen_kinds(
    writer: PromptedWriter,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text_pair: bool,
    fingerprint: Fingerprint | None = None,
) -> list[str]:
    """The `TAKEN` kinds of `KINDS` that suit the teacher best, the best first: by how much a text of this kind tells of
    the teacher's answer (`Suitability.information`, for a number its spread), and, where the weights tell which words
    the teacher was not fine-tuned on, by the sum of both ranks. For pairs the second text is written after the first,
    after every relation in turn."""
    rng = torch.Generator().manual_seed(0)
    asked = [(kind, line) for kind in KINDS for line in drawn(tuple(openings(kind)), EACH, rng)]
    say(
        f"nothing tells what kind of text the teacher reads: {len(asked)} texts of {len(KINDS)} kinds are written first"
    )
    first = [row.text for row in writer.write([line for _, line in asked], rng)]
    second = [""] * len(first)
    if text_pair:
        relations = [*RELATIONS.values()]
        after = [relations[i % len(relations)].replace("{first}", text) for i, text in enumerate(first)]
        second = [row.text for row in writer.write(after, rng)]
    rows: dict[str, list[Any]] = {kind: [] for kind in KINDS}
    for (kind, _), text, follow in zip(asked, first, second, strict=True):
        if text and (follow or not text_pair):
            rows[kind].append((text, follow) if text_pair else text)
    told = {}
    for kind, some in rows.items():
        if some:
            found = Suitability.of(teacher, tokenizer, some, fingerprint)
            told[kind] = found.spread if found.information is None else found.information, found.alien
    by_answers = sorted(told, key=lambda kind: -told[kind][0])
    by_words = sorted(told, key=lambda kind: told[kind][1] or 0.0)  # where nothing is known, as they came
    known = fingerprint is not None and fingerprint.signal
    rank = {kind: by_answers.index(kind) + (by_words.index(kind) if known else 0) for kind in told}
    best = sorted(told, key=rank.__getitem__)[:TAKEN]
    numbers = ", ".join(
        f"{kind} ({told[kind][0]:.2f}{f', {told[kind][1]:.0%} foreign words' if known else ''})" for kind in best
    )
    say(f"kinds of text on which the teacher's answers differ most: {numbers}")
    return best
