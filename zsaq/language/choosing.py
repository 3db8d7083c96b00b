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
TAKEN: Final = 4  # kinds at most
CLOSE: Final = 0.85  # of the best kind's number: what the next ones must have


def chosen_kinds(
    writer: PromptedWriter,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text_pair: bool,
    fingerprint: Fingerprint | None = None,
) -> list[str]:
    """The kinds of `KINDS` that suit the teacher best, the best first: by how much a text of this kind tells of the
    teacher's answer (`Suitability.information`, for a number its spread), where the weights tell which words the
    teacher was not fine-tuned on times the share of the others. As many as `TAKEN`, which come `CLOSE` to the best. For
    pairs the second text is written after the first, after every relation in turn. All three are choices of ours."""
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
    told: dict[str, float] = {}
    for kind, some in rows.items():
        if some:
            found = Suitability.of(teacher, tokenizer, some, fingerprint)
            own = found.spread if found.information is None else found.information
            assert own is not None, "the teacher answers a class or a number"
            told[kind] = own * (1 - (found.alien or 0.0))
    ranked = sorted(told, key=lambda kind: -told[kind])
    best = [kind for kind in ranked[:TAKEN] if told[kind] >= CLOSE * told[ranked[0]]]
    numbers = ", ".join(f"{kind} ({told[kind]:.2f})" for kind in ranked[: TAKEN + 2])
    say(f"kinds of text on which the teacher's answers differ most: {numbers}")
    return best
