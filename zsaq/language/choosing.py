"""Which kinds of text suit a teacher that nobody describes: a few of each are written, and its own answers tell."""

from collections.abc import Callable, Sequence
from typing import Final

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zsaq.language.chunks import drawn
from zsaq.language.kinds import KINDS, RELATIONS, openings
from zsaq.language.layout import Layout
from zsaq.language.prompted import PromptedWriter
from zsaq.language.prompts import information
from zsaq.language.sources import texts
from zsaq.train.logging import say
from zsaq.train.pair import run_model

EACH: Final = 24  # texts of a kind
TAKEN: Final = 4  # kinds

Foreign = Callable[[Sequence[str]], float]


def chosen_kinds(
    writer: PromptedWriter,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    layout: Layout,
    foreign: Foreign | None = None,
) -> list[str]:
    """The `TAKEN` kinds of `KINDS` that suit the teacher best, the best first: by how much a text of this kind tells of
    the teacher's answer (`information`), and, where `foreign` (the share of a text's words that the teacher was not
    fine-tuned on) is known, by the sum of both ranks. For pairs the second text is written after the first, after every
    relation in turn."""
    rng, told = torch.Generator().manual_seed(0), {}
    for kind in KINDS:
        first = [row.text for row in writer.write(drawn(tuple(openings(kind)), EACH, rng), rng) if row.text]
        rows: list = first
        if layout.text_pair and first:
            asked = [*RELATIONS.values()]
            after = [asked[i % len(asked)].replace("{first}", text) for i, text in enumerate(first)]
            rows = [(a, b.text) for a, b in zip(first, writer.write(after, rng), strict=True) if b.text]
        if rows:
            told[kind] = answered(teacher, tokenizer, layout, rows), foreign(first) if foreign else 0.0
    by_answers = sorted(told, key=lambda kind: -told[kind][0])
    by_words = sorted(told, key=lambda kind: told[kind][1])
    rank = {kind: by_answers.index(kind) + (by_words.index(kind) if foreign else 0) for kind in told}
    best = sorted(told, key=rank.__getitem__)[:TAKEN]
    numbers = ", ".join(
        f"{kind} ({told[kind][0]:.2f}{f', {100 * told[kind][1]:.0f} % foreign words' if foreign else ''})"
        for kind in best
    )
    say(f"kinds of text on which the teacher's answers differ most: {numbers}")
    return best


@torch.no_grad()
def answered(teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, layout: Layout, rows: Sequence) -> float:
    """`information` of the teacher's answers to these texts, or pairs of texts."""
    batch = next(texts(list(rows), tokenizer, layout, len(rows)))
    return information(run_model(teacher, {name: value.to(teacher.device) for name, value in batch.items()}).logits)
