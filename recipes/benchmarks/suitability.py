"""Whether `zsaq fit` ranks texts as the students that learn from them: rank correlation of its numbers with their KL.

    python -m recipes.benchmarks.suitability TEACHER --sources DIR --test TEXT --base ID --steps 40 --minutes 9

TEACHER: a folder or id, or "embedded" for the teacher of `examples/embedded.py`. DIR holds texts, one .txt, .jsonl or
.parquet a source (`zsaq.Corpus.load`); random tokens, and random words of the fine-tuning where the base is known,
are sources of their own. TEST is real text, read to report the students' KL and for nothing else. Students are kept in
DIR/students.jsonl, and not repeated: stop and go on at will.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import zsaq
from zsaq.io.base import load_base
from zsaq.io.readers import tokenizer_of
from zsaq.io.teacher import load_teacher
from zsaq.language.fingerprint import Fingerprint
from zsaq.language.layout import Layout
from zsaq.language.models import printable
from zsaq.language.sources import random_tokens, texts
from zsaq.language.suitability import Suitability
from zsaq.language.text import Text
from zsaq.quant.positions import longest
from zsaq.report.table import Table
from zsaq.script import positive, told

LONGEST, BATCH, LENGTH = 128, 32, (4, 40)
MEASURES = {"information": -1, "spread": -1, "entropy": -1, "doubt": 1, "coverage": -1, "perplexity": 1, "alien": 1}
"""Of a text, and whether a better one has more (-1) or less (1)."""


def read(source: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if source == "embedded":
        from recipes.examples import embedded

        made = embedded.prepare()
        return made.teacher, made.tokenizer
    tokenizer = tokenizer_of(source)
    if tokenizer is None:
        raise ValueError(f"{source} has no tokenizer: give a folder or id with one")
    return load_teacher(source).float(), tokenizer


def ranks(values: list[float]) -> Tensor:
    """Mean ranks, ties shared."""
    x = torch.tensor(values, dtype=torch.float64)
    return ((x[:, None] > x).sum(1) + (x[:, None] == x).sum(1) / 2).double()


def spearman(a: list[float], b: list[float]) -> float:
    return float(torch.corrcoef(torch.stack([ranks(a), ranks(b)]))[0, 1])


def random_words(tokens: Tensor, seed: int, count: int = 4096) -> Text:
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.randint(LENGTH[0], LENGTH[1] + 1, (count,), generator=rng).tolist()
    return Text.of([tokens[torch.randint(len(tokens), (n,), generator=rng)].tolist() for n in lengths])


class Study:
    """Students of one teacher, one a source, and what `zsaq fit` says of each source."""

    def __init__(self, teacher: str, folder: Path, base: str | None) -> None:
        self.model, self.tokenizer = read(teacher)
        self.folder, self.kept = folder, folder / "students.jsonl"
        most = min(LONGEST, longest(self.model) or LONGEST, self.tokenizer.model_max_length)
        self.layout = Layout.of(self.tokenizer, most)
        self.fingerprint = Fingerprint.of(self.model, load_base(base)) if base else None
        files = [f for f in sorted(folder.iterdir()) if f.suffix in (".txt", ".jsonl", ".parquet") and f != self.kept]
        self.rows: dict[str, Any] = {file.stem: zsaq.Corpus.load(file).rows for file in files}
        if self.fingerprint is not None and self.fingerprint.signal:
            words = printable(self.tokenizer)
            self.rows["random fine-tuned words"] = random_words(words[self.fingerprint.moved[words]], 5)

    def names(self) -> list[str]:
        return ["random tokens", *self.rows]

    def batches(self, name: str, seed: int) -> Iterator[Any]:
        if name not in self.rows:
            return random_tokens(self.tokenizer, self.layout, BATCH, seed=seed)
        return texts(self.rows[name], self.tokenizer, self.layout, BATCH, seed=seed)

    def suitability(self, name: str) -> Suitability:
        if name not in self.rows:
            return Suitability.of_random(self.model, self.tokenizer)
        rows = self.rows[name]
        if isinstance(rows, Text):
            return Suitability.of_ids(self.model, self.tokenizer, [rows.rows(torch.arange(512))], 0.0)
        return Suitability.of(self.model, self.tokenizer, rows, self.fingerprint)

    @torch.inference_mode()
    def answers(self, model: PreTrainedModel, rows: list[str]) -> Tensor:
        parts = []
        for i in range(0, len(rows), 2 * BATCH):
            batch = self.tokenizer(
                rows[i : i + 2 * BATCH], padding=True, truncation=True, max_length=self.layout.max_length,
                return_tensors="pt",
            )  # fmt: skip
            parts.append(model(**batch).logits)
        return torch.cat(parts).log_softmax(-1)

    def run(self, test: list[str], bits: str, steps: int, seed: int, minutes: float) -> dict[str, float]:
        """KL of each source's student, as far as the time goes; kept ones are read."""
        lines = self.kept.read_text().splitlines() if self.kept.exists() else []
        key = {"bits": bits, "steps": steps, "seed": seed}
        done = {row["source"]: row["kl"] for row in map(json.loads, lines) if row.items() >= key.items()}
        test = sorted(test, key=len)
        goal, began, last = self.answers(self.model, test), time.monotonic(), 0.0
        for name in self.names():
            if name in done or time.monotonic() - began + last > 60 * minutes:
                continue
            start = time.monotonic()
            student = zsaq.quantize(
                self.model, bits, method="distill", tokenizer=self.tokenizer, batches=self.batches(name, seed),
                steps=steps, seed=seed,
            )  # fmt: skip
            said = self.answers(student, test)
            done[name] = float((goal.exp() * (goal - said)).sum(-1).mean())
            agreement = float((goal.argmax(-1) == said.argmax(-1)).float().mean())
            last = time.monotonic() - start
            row = {"source": name, **key, "kl": done[name], "agreement": agreement, "seconds": round(last, 1)}
            with self.kept.open("a") as file:
                file.write(json.dumps(row) + "\n")
        return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("--sources", required=True, type=Path)
    parser.add_argument("--test", required=True)
    parser.add_argument("--base")
    parser.add_argument("--bits", default="w2a8")
    parser.add_argument("--steps", type=positive, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=math.inf, help="No student is begun that would end later.")
    args = parser.parse_args()
    study = Study(args.teacher, args.sources, args.base)
    test = [row if isinstance(row, str) else row[0] for row in zsaq.Corpus.load(args.test).rows]
    kl = study.run(test, args.bits, args.steps, args.seed, args.minutes)
    rows = [{"source": n, "kl": kl[n], **asdict(study.suitability(n))} for n in sorted(kl, key=lambda n: kl[n])]
    print(Table(rows).to_markdown())
    for measure, sign in MEASURES.items():
        known = [row for row in rows if row[measure] is not None]
        if len(known) > 2:
            found = spearman([sign * row[measure] for row in known], [row["kl"] for row in known])
            print(f"{measure}: rank correlation with KL {found:.2f} over {len(known)} sources")


if __name__ == "__main__":
    with told():
        main()
