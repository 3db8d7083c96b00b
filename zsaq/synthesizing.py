"""Text for a teacher, written once and kept: `zsaq.synthesize_text`.

corpus = zsaq.synthesize_text("path/or/id", n=2048, generator="HuggingFaceTB/SmolLM2-135M-Instruct")
corpus.save("text")  # a data set that `datasets` loads; zsaq.quantize(model, "w2a8", corpus="text") reads it
"""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, Final

from zsaq.io.corpus import Corpus
from zsaq.io.teacher import name_of
from zsaq.language.chunks import Chunks
from zsaq.language.job import TextJob
from zsaq.report.card import base_of
from zsaq.run import Base
from zsaq.subject import Subject
from zsaq.train.randomness import check_seed

MOST: Final = 2**22  # rows of one corpus


def synthesize_text(
    model: Any, n: int = 4096, *, prompts: Sequence[str] | None = None,
    generator: Any = None, base: str | None = None, text_pair: bool = False, tokenizer: Any = None, seed: int = 0,
    temperature: float = 1.0, max_tokens: int | None = None, chat: bool = True, license: str | None = None,
) -> Corpus:  # fmt: skip
    """`n` texts, or pairs of texts with `text_pair`, that fit a teacher; no data is read.

    `generator`: a path or id of any causal language model, or (model, tokenizer). It goes on after `prompts`, several
    of which are drawn at random; a prompt that holds {first} asks for the second text of a pair. Without prompts they
    are made of what is known about the teacher: its labels, the kind of text that its name and card point at, and,
    where `base` (a path or id of its public base) shows it, the words that its weights remember; where nothing is
    known, of the kinds of text on which its own answers differ most (`Corpus.facts["origin"]` tells).

    `temperature`, `max_tokens` (by default what the teacher reads, at most 48), `chat` as in `PromptedWriter`. The same
    seed writes the same text on the same machine. `license`: the generator's, if its card names none. Raises ValueError
    for a model that reads no text, and for what cannot be asked for.
    """
    if type(n) is not int or not 1 <= n <= MOST:
        raise ValueError(f"n is {n!r}; give an integer from 1 to {MOST}")
    check_seed(seed)
    options = {"temperature": temperature, "max_tokens": max_tokens, "chat": chat}
    subject = Subject.of(
        model, tokenizer=tokenizer, generator=generator, text_pair=text_pair, prompts=prompts, base=base
    )
    job = subject.job
    if not isinstance(job, TextJob):
        raise ValueError(f"{subject.name} reads images: give a model that reads text")
    Base(subject.name, {} if license is None else {"license": license})  # refused before anything is written
    chunks = job.written(seed=seed, goal=n, **options)
    rows: list[Any] = []
    fluency: list[float] = []
    while len(rows) < n:
        texts, values = chunks.read(len(chunks.kept))
        rows += texts
        fluency += values
    return Corpus(tuple(rows[:n]), tuple(fluency[:n]), facts(subject.name, job.generator, chunks, license))


def facts(teacher: str, generator: Any, chunks: Chunks, license: str | None) -> dict[str, Any]:
    """How a corpus was written."""
    writer, prompts = chunks.writer, chunks.prompts
    path = generator if isinstance(generator, str) else str(generator[0].name_or_path)
    name = name_of(path) if path else type(generator[0]).__name__  # which is nothing that the Hub knows
    terms = {"license": license} if license else dict(base_of(path).license) if path else {}
    return {
        "teacher": teacher, "generator": name, **terms, "prompts": [*prompts.first, *prompts.second],
        "origin": prompts.origin, "pairs": bool(prompts.second), "temperature": writer.temperature,
        "max_tokens": writer.max_tokens, "chat": writer.chat, "seed": chunks.seed, "zsaq": version("zsaq"),
        "dtype": str(writer.model.dtype).removeprefix("torch."), "texts_per_second": round(rate(chunks), 2),
    }  # fmt: skip


def rate(chunks: Chunks) -> float:
    return sum(len(rows) for rows, _ in chunks.kept) / max(chunks.seconds, 1e-9)
