"""The files that make an embedding model of an encoder in sentence-transformers: how its states are pooled, how much
text it reads. They are read as anybody's, and travel with a student.

    modules.json                       [Transformer, Pooling, Normalize]: which, in that order
    1_Pooling/config.json              how
    sentence_bert_config.json          tokens that are read
    config_sentence_transformers.json  prompts, and which similarity is meant
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, final

from zsaq.pooling import Mode, Pooling
from zsaq.sentence_files import AGAIN, CONFIG, LEGACY, LENGTHS, MODULES, PROMPTS, Reader, chain_of, found, listed

CHAINS: Final = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])


@final
@dataclass(frozen=True)
class Sentence:
    """An embedding model's own words. `length`: tokens of a text that are read, None where the files tell no number;
    `lower`: its texts are written in lower case first; `files`: what travels, JSON by relative name; `notes`: what of
    the files is left out, for people."""

    pooling: Pooling = field(default_factory=Pooling)
    length: int | None = None
    lower: bool = False
    files: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, source: str | Path | None) -> "Sentence | None":
        """Of a folder, or of an id whose files lie in the Hub's cache (`fetch`); None where it has none, and for a
        chain without pooling, as a reranker's.

        Raises ValueError for files that are not of their form: JSON that is none, a pooling that does not exist, a path
        that leads elsewhere, code that is not sentence-transformers' own.
        """
        if source is None or not str(source) or (path := found(source, MODULES)) is None:
            return None
        chain = chain_of(path)
        kinds = [kind for kind, _ in chain]
        if kinds[:2] != CHAINS[0]:
            return None
        reader = Reader(source)
        files: dict[str, Any] = {}
        pooling = reader.read(f"{chain[1][1]}/{CONFIG}", "Pooling")
        if not pooling:
            raise ValueError(f"{path} names {chain[1][1]}, and there is no {CONFIG} in it: {AGAIN}")
        files[f"{chain[1][1]}/{CONFIG}"] = pooling
        normalized = kinds == CHAINS[1]
        if normalized and (own := reader.read(f"{chain[2][1]}/{CONFIG}", "Normalize")):
            files[f"{chain[2][1]}/{CONFIG}"] = own
        name = next((name for name in LENGTHS if found(source, name)), None)
        lengths = reader.read(name, "Transformer") if name else {}
        files |= {name: lengths} if name else {}
        files |= {PROMPTS: prompts} if (prompts := reader.read(PROMPTS, "")) else {}
        files[MODULES] = [
            {"idx": place, "name": str(place), "path": where, "type": f"sentence_transformers.models.{kind}"}
            for place, (kind, where) in enumerate(chain)
        ]
        notes = list(reader.notes)
        if kinds not in CHAINS:
            notes.append(
                f"{MODULES} goes on with {', '.join(kinds[2:])}, which is not kept: vectors are those of the pooling, "
                "and the student is no model of sentence-transformers"
            )
            files = {}
        if prompts.get("default_prompt_name") is not None:
            notes.append(f"the prompt {prompts['default_prompt_name']!r:.80} is kept, and not put before texts here")
        made = Pooling(modes_of(pooling), normalized)
        return cls(made, lengths.get("max_seq_length"), lengths.get("do_lower_case", False), files, tuple(notes))

    def save_pretrained(self, folder: Path) -> None:
        """The files in `folder`, as far as their keys are known."""
        for name, data in self.files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def pooling_of(source: str | Path | None) -> Pooling:
    """How a model that is known by that name pools: as its files say, else the mean."""
    sentence = Sentence.of(source)
    return Pooling() if sentence is None else sentence.pooling


def modes_of(pooling: Mapping[str, Any]) -> tuple[Mode, ...]:
    flags: list[Any] = [mode for flag, mode in LEGACY.items() if pooling.get(flag)]
    return tuple(listed(pooling["pooling_mode"]) if "pooling_mode" in pooling else flags or ["mean"])


def told_pooling(sentence: Sentence | None) -> str:
    """How an embedding is made, and what of its files is left out, in words."""
    if sentence is None:
        return f"embeddings are taken for {Pooling()} over tokens: no files of sentence-transformers tell otherwise"
    return "; ".join((f"embeddings are {sentence.pooling} over tokens", *sentence.notes))
