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


def used(job: TextJob, corpus: Corpus | None, reads: bool = True) -> tuple[str, ...]:
    """The words about the model that text was made of, for results and cards; () where none were used. `reads`: whether
    the method reads text; bits that were chosen by size have read some before."""
    sized = (f"bits chosen by size, on text of {writer_of(job)}"[:500],) if job.sized else ()
    if not reads:
        return sized + told(job.asked)
    if corpus is None:
        return sized + told(job.asked if job.chunks is None else job.chunks.prompts)
    facts = corpus.facts
    origin = f"{facts.get('generator')}, {facts.get('origin')}" if corpus.zero_shot else "unknown origin"
    return (f"{len(corpus.rows)} texts, sha256 {corpus.sha256[:16]}, of {origin}"[:500], *sized, *told(job.asked))


def told(prompts: Prompts | None) -> tuple[str, ...]:
    """What prompts were made of, and the first of them."""
    if prompts is None:
        return ()
    return (f"prompts {prompts.origin}"[:500], *(f"prompt: {line}"[:200] for line in prompts.first[:8]))


def writer_of(job: TextJob) -> str:
    """The generator of a job, by its path, id or class."""
    if isinstance(job.generator, str):
        return job.generator
    model = job.generator[0]
    return "the model itself" if model is job.start else model.name_or_path or type(model).__name__
