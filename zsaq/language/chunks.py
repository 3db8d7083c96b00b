"""Prompted text, written a chunk at a time when it is needed first, kept, and read by every method."""

import time
from collections.abc import Callable, Iterator
from typing import Any, Final, Self, final

import torch
from transformers import PreTrainedTokenizerBase

from zsaq.language.layout import Layout
from zsaq.language.prompted import PromptedWriter, Written
from zsaq.language.prompts import Prompts
from zsaq.language.sources import columns
from zsaq.language.text import encode, similar, text_pairs
from zsaq.train.clocks import Clock, read, running
from zsaq.train.logging import say
from zsaq.train.pair import Batch

CHUNK: Final = 256  # rows that are written together
ROWS: Final = 4096  # after so many different ones a stream begins anew
TRIES: Final = 8  # times a chunk is asked for before its prompts are given up


@final
class Chunks:
    """Chunk i is the same `CHUNK` rows whenever it is written, by a generator of random numbers of its own: texts, or
    pairs of which the second text is written after the first. No row is empty, none stands twice in its chunk.

    Raises ValueError where a generator writes next to nothing after these prompts.
    """

    def __init__(
        self, writer: PromptedWriter, prompts: Prompts, *, seed: int = 0, size: int = CHUNK, goal: int | None = None
    ) -> None:
        """`goal`: rows that will be asked for, where that is known, for the estimate that is told after every batch."""
        self.writer, self.prompts, self.seed, self.size, self.goal = writer, prompts, seed, size, goal
        self.kept: list[tuple[list[Any], list[float]]] = []
        self.began: float | None = None
        self.seconds = 0.0
        self.prompting: dict[str, float] = {}  # what choosing the prompts cost, for every row that reads texts
        self.costs: list[dict[str, float]] = []  # of each chunk, for every row that reads it

    @classmethod
    def shared(cls, make: Callable[[], "Chunks"]) -> "Chunks":
        """What `make` answers, for several rows: each counts the seconds that it takes."""
        with running(Clock(), shared=True) as clock:
            chunks = make()
        chunks.prompting = clock.costs("prompts")
        return chunks

    def __getitem__(self, i: int) -> list[Any]:
        """The rows of chunk i."""
        return self.read(i)[0]

    def read(self, i: int) -> tuple[list[Any], list[float]]:
        """Rows of chunk i, and how fluent each is; of a pair the mean of both texts."""
        while len(self.kept) <= i:
            self.began = time.perf_counter() - self.seconds
            with running(Clock(), shared=True) as clock:
                self.kept.append(self.chunk(len(self.kept)))
            self.costs.append(clock.costs(f"chunk {len(self.costs)}"))
            self.seconds = time.perf_counter() - self.began
        for costs in (self.prompting, *self.costs[: i + 1]):  # alone a row writes those before i too
            read(costs)
        return self.kept[i]

    def chunk(self, i: int) -> tuple[list[Any], list[float]]:
        rng, found = torch.Generator().manual_seed(2**20 * self.seed + i), {}
        for _ in range(TRIES):
            for row, fluency in self.some(self.size - len(found), rng):
                found.setdefault(row, fluency)
            if len(found) == self.size:
                break
        if 2 * len(found) < self.size:
            raise ValueError(
                f"after {TRIES * self.size} tries the generator wrote {len(found)} different texts of the {self.size} "
                f"asked for, after prompts such as {self.prompts.first[0]!r:.120}: give other prompts, a higher "
                "temperature or another generator"
            )
        return list(found), list(found.values())

    def some(self, count: int, rng: torch.Generator) -> list[tuple[Any, float]]:
        parts = 1 + bool(self.prompts.second)

        def write(lines: list[str], before: int = 0) -> list[Written]:
            return self.writer.write(lines, rng, lambda done: self.tell((before + done) // parts))

        first = [row for row in write(drawn(self.prompts.first, count, rng)) if row.text]
        if parts == 1:
            return [(row.text, row.fluency) for row in first]
        asked = drawn(self.prompts.second, len(first), rng)
        follow = write([a.replace("{first}", b.text) for a, b in zip(asked, first, strict=True)], count)
        return [((a.text, b.text), mean(a, b)) for a, b in zip(first, follow, strict=True) if b.text]

    def tell(self, more: int) -> None:
        """How many rows are written, `more` of them in the chunk that is open, and what is left."""
        done, seconds = sum(len(rows) for rows, _ in self.kept) + more, time.perf_counter() - (self.began or 0)
        if self.goal is None:
            return say(f"writing texts: {done}  {seconds:.0f} s")
        left = (self.goal - done) * seconds / max(done, 1)
        say(f"writing {done}/{self.goal} texts  {seconds:.0f} s" + (f", about {left:.0f} s left" if left > 0 else ""))


def drawn(lines: tuple[str, ...], count: int, rng: torch.Generator) -> list[str]:
    return [lines[i] for i in torch.randint(len(lines), (count,), generator=rng).tolist()]


def mean(a: Written, b: Written) -> float:
    return (a.fluency + b.fluency) / 2


@final
class ChunkStream(Iterator[Batch]):
    """Endless batches of chunks in their order, each in an order of `seed`'s; after `rows` it begins with the first.

    Its random numbers are of a place alone, and no stream of the run's: a run that goes on opens that one chunk again.
    """

    def __init__(
        self, chunks: Chunks, tokenizer: PreTrainedTokenizerBase, layout: Layout, batch_size: int, *, seed: int = 0,
        rows: int = ROWS,
    ) -> None:  # fmt: skip
        self.chunks, self.tokenizer, self.layout = chunks, tokenizer, layout
        self.batch_size, self.seed, self.count = batch_size, seed, max(1, rows // chunks.size)
        self.each = max(1, chunks.size // batch_size)
        self.place = 0
        self.ready: list[Batch] = []

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        if not self.ready:
            self.open()
        self.place += 1
        return self.ready.pop()

    def open(self) -> None:
        """The chunk of this place."""
        number = self.place // self.each
        rows = self.chunks[number % self.count]
        rng = torch.Generator().manual_seed(2**20 * self.seed + number)
        contents = [encode(self.tokenizer, list(column)) for column in columns(rows)]
        lengths = torch.stack([content.mask.sum(1) for content in contents]).sum(0)
        order = torch.randperm(len(rows), generator=rng).repeat(2)[: self.each * self.batch_size]
        for index in similar(lengths[order], self.batch_size, rng):
            chosen = [content.rows(order[index]) for content in contents]
            lone = self.layout.text_pair and len(chosen) == 1
            self.ready.append(self.layout.place(*(text_pairs(chosen[0], rng) if lone else chosen)))

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The chunk that is open is written anew, where it is not kept."""
        self.place, self.ready = state_dict["place"], []
        if read := self.place % self.each:
            self.open()
            del self.ready[-read:]
