"""What is known about a text model without any data: words of its name, labels and card, and what a run used."""

from collections.abc import Sequence
from typing import Any

from zsaq.io.corpus import Corpus
from zsaq.language.asking import Asking
from zsaq.language.job import TextJob
from zsaq.language.prompts import Known, Prompts
from zsaq.report.card import metadata_of


def asking_of(teacher: Any, source: str | None, prompts: Sequence[str] | None, text_pair: bool) -> Asking:
    """What a generator is to be asked for text for this teacher; `source`: the path or id that it was given by, whose
    card is read if no `prompts` are given."""
    if prompts is not None:
        return Asking(Prompts.given(prompts, text_pair))
    return Asking(known=Known.of(teacher, source or "", metadata_of(source) if source else {}))


def used(job: TextJob, corpus: Corpus | None) -> tuple[str, ...]:
    """The words about the model that its text was made of, for results and cards; () where none were used."""
    if corpus is not None:
        facts = corpus.facts
        origin = f"{facts.get('generator')}, {facts.get('origin')}" if facts else "unknown origin"
        return (f"{len(corpus.rows)} texts, sha256 {corpus.sha256[:16]}, of {origin}"[:500],)
    if job.chunks is None:
        return ()
    prompts = job.chunks.prompts
    return (f"prompts {prompts.origin}"[:500], *(f"prompt: {line}"[:200] for line in prompts.first[:8]))
