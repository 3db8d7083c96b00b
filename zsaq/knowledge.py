"""What is known about a text model without any data: words of its name, labels and card, and what a run used."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from zsaq.io.base import load_base
from zsaq.io.corpus import Corpus
from zsaq.language.asking import Asking
from zsaq.language.fingerprint import Fingerprint
from zsaq.language.job import TextJob
from zsaq.language.prompts import Known, Prompts
from zsaq.report.card import metadata_of
from zsaq.report.origin import origin_of
from zsaq.train.logging import say


def asking_of(
    teacher: Any, source: str | None, prompts: Sequence[str] | None, text_pair: bool, base: str | Path | None
) -> Asking:
    """What a generator is to be asked for text for this teacher. `source`: the path or id that it was given by, whose
    card is read if no `prompts` are given; `base`: of its public base, by default the one that the card names.

    Raises ValueError for prompts that cannot be, and for a `base` that cannot be loaded.
    """
    if prompts is not None:
        return Asking(Prompts.given(prompts, text_pair))
    origin = None if base is None else load_base(base)

    @cache
    def fingerprint() -> Fingerprint | None:
        known = origin
        if known is None and source is not None:
            try:
                known = load_base(origin_of(source))
            except (ValueError, ConnectionError) as error:
                say(f"what the weights remember is not known: {error}")
        return None if known is None else Fingerprint.of(teacher, known)

    return Asking(None, Known.of(teacher, source or "", metadata_of(source) if source else {}), fingerprint)


def used(job: TextJob, corpus: Corpus | None) -> tuple[str, ...]:
    """The words about the model that its text was made of, for results and cards; () where none were used."""
    if corpus is not None:
        facts = corpus.facts
        origin = f"{facts.get('generator')}, {facts.get('origin')}" if corpus.zero_shot else "unknown origin"
        return (f"{len(corpus.rows)} texts, sha256 {corpus.sha256[:16]}, of {origin}"[:500],)
    if job.chunks is None:
        return ()
    prompts = job.chunks.prompts
    return (f"prompts {prompts.origin}"[:500], *(f"prompt: {line}"[:200] for line in prompts.first[:8]))
