"""How well the similarity of two texts' embeddings follows what people say: Spearman and Pearson correlations.

Any table of pairs will do: STS-B's, or a file with two columns of text and one of scores.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Final, final

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zsaq.eval.gathering import gather_rows, share
from zsaq.eval.metrics import pearson, spearmanr
from zsaq.eval.reading import SHARD, read_table, read_text, shards
from zsaq.eval.suiting import counts, covers, reads
from zsaq.quant.modes import evaluating
from zsaq.quant.positions import longest
from zsaq.sentence import Sentence
from zsaq.train.pair import run_model

KINDS: Final = ("parquet", "csv", "tsv", "jsonl")
TEXTS: Final = (("sentence1", "sentence2"), ("text1", "text2"), ("sentence_A", "sentence_B"))
SCORES: Final = ("score", "label", "similarity_score", "relatedness_score")


@final
@dataclass(frozen=True)
class Pairs:
    """Two texts a row, and how alike they are, in any unit."""

    first: list[str]
    second: list[str]
    scores: list[float]

    def __len__(self) -> int:
        return len(self.scores)


def read_pairs(path: str | Path, split: str | None = None, limit: int | None = None) -> Pairs:
    """The pairs of a .parquet, .csv, .tsv or .jsonl file, or of a folder's file for `split`, by default "test".

    The columns are those of STS-B (sentence1, sentence2, score or label) or others of these names, else the only two of
    text and the only one of numbers. Raises ValueError for no file, columns that cannot be told, texts that are none,
    scores that are no finite numbers or all the same, a limit that is no count, and fewer than two rows.
    """
    file, rows = Path(path), []
    counts(optional=True, limit=limit)
    for each in files_of(file, split) if file.is_dir() else [file]:
        rows += read_rows(each)
    rows = rows[:limit]
    if len(rows) < 2:
        raise ValueError(f"{path} holds {len(rows)} rows: a correlation needs at least two")
    one, two, score = columns_of(file, rows)
    for number, row in enumerate(rows):
        for column in (one, two):
            if not isinstance(row.get(column), str):
                raise ValueError(f"{path}: row {number}, column {column!r} is {row.get(column)!r:.99}: give text")
    scores = [number_of(file, number, score, row.get(score)) for number, row in enumerate(rows)]
    if min(scores) == max(scores):
        raise ValueError(f"{path}: all of its {len(rows)} scores are {scores[0]}: nothing can follow them")
    return Pairs([row[one] for row in rows], [row[two] for row in rows], scores)


def files_of(folder: Path, split: str | None) -> list[Path]:
    """The one file, or the shards, of a split. Raises ValueError for none and for several."""
    name = split or "test"
    files = [file for kind in KINDS if (file := folder / f"{name}.{kind}").is_file()]
    files = files or [file for file in shards(folder, f"{name}-") if SHARD.sub("", file.stem) == name]
    if not files or (len(files) > 1 and len({file.suffix for file in files}) > 1):
        held = f"has {', '.join(file.name for file in files)}" if files else f"has no {name}.{{{','.join(KINDS)}}}"
        raise ValueError(f"{folder} {held} for the split {name!r}: keep one of them, or give the file itself")
    return files


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Raises ValueError for another kind of file, and for one that cannot be read."""
    if not file.is_file():
        raise ValueError(f"{file} is neither a file nor a folder: give pairs of texts with scores")
    if file.suffix[1:] not in KINDS:
        raise ValueError(f"{file} is no table that is read here: give one of .{', .'.join(KINDS)}")
    if file.suffix != ".csv":
        return read_table(file)
    try:
        return list(csv.DictReader(StringIO(read_text(file), newline=""), strict=True))
    except csv.Error as error:
        raise ValueError(f"{file} is no readable csv: {error}") from error


def columns_of(file: Path, rows: Sequence[dict[str, Any]]) -> tuple[str, str, str]:
    """The two columns of text, and that of scores. Raises ValueError where they cannot be told."""
    names = [name for name in rows[0] if name is not None]
    texts = next((pair for pair in TEXTS if set(pair) <= set(names)), None)
    if texts is None:
        found = [name for name in names if isinstance(rows[0][name], str) and not is_number(rows[0][name])]
        texts = (found[0], found[1]) if len(found) == 2 else None
    known = [name for name in SCORES if name in names]
    scores = known[:1] or [name for name in names if is_number(rows[0][name])]
    if texts is None or len(scores) != 1:
        raise ValueError(
            f"{file} has the columns {names}, and which hold the two texts and the score cannot be told: call them "
            f"{', '.join(TEXTS[0])} and {SCORES[0]}"
        )
    return *texts, scores[0]


def is_number(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and value is not None and math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False


def number_of(file: Path, row: int, column: str, value: Any) -> float:
    if not is_number(value):
        raise ValueError(f"{file}: row {row}, column {column!r} is {value!r:.99}: give a finite number")
    return float(value)


@torch.no_grad()
def embed(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, batch_size: int = 64,
    max_length: int | None = None, accelerator: Accelerator | None = None,
) -> tuple[Tensor, int]:  # fmt: skip
    """The texts' embeddings [n, d] float32 on the CPU, pooled as the model's own files say, else as the mean over its
    tokens; and how many texts were cut.

    A text is cut at `max_length` tokens, by default where the files, the tokenizer and the model end. Batches hold
    texts of like length. Raises ValueError for sizes that are no counts, tokens that the model does not know, a model
    that answers no states, and embeddings that are not finite.
    """
    reads(model, "input_ids", "pairs of texts")
    counts(batch_size=batch_size)
    counts(optional=True, max_length=max_length)
    sentence = Sentence.of(model.name_or_path) or Sentence()
    limits = [max_length or sentence.length, tokenizer.model_max_length, longest(model)]
    most = min(limit for limit in limits if limit is not None)
    unique = list(dict.fromkeys(text.lower() if sentence.lower else text for text in texts))
    place = {text: number for number, text in enumerate(unique)}
    whole = tokenizer(unique, truncation=False, verbose=False)["input_ids"]
    cut = {text for text, ids in zip(unique, whole, strict=True) if len(ids) > most}
    encoded = tokenizer(unique, truncation=True, max_length=most)
    covers(model, [token for ids in encoded["input_ids"] for token in ids])
    by_length = sorted(range(len(unique)), key=lambda i: len(encoded["input_ids"][i]), reverse=True)
    batches = share([by_length[i : i + batch_size] for i in range(0, len(unique), batch_size)], accelerator)
    vectors = []
    with evaluating(model):
        for batch in batches:
            inputs = {name: [column[i] for i in batch] for name, column in encoded.items()}
            tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True  # padding them sorted is meant
            shown = dict(tokenizer.pad(inputs, return_tensors="pt").to(model.device))
            out = run_model(model, shown)
            if out.headless is None:
                raise ValueError(
                    f"{type(model).__name__} answers logits, and similarities are of embeddings: give a bare encoder, "
                    "or score a model of pairs with --task stsb"
                )
            vectors.append(sentence.pooling(out.answer, shown["attention_mask"]))
    rows = [i for batch in batches for i in batch]
    width = vectors[0].shape[1] if vectors else model.config.hidden_size * len(sentence.pooling.modes)
    own = torch.cat(vectors) if vectors else torch.empty(0, width, device=model.device)
    answer = gather_rows(rows, own, len(unique), accelerator)
    if broken := int((~answer.isfinite()).any(1).sum()):
        raise ValueError(f"{broken} of {len(unique)} embeddings are nan or infinite: the model is broken")
    lowered = [text.lower() if sentence.lower else text for text in texts]
    return answer[[place[text] for text in lowered]], sum(text in cut for text in lowered)


def similarities(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Pairs, **options: Any
) -> tuple[Tensor, Tensor, int]:
    """The cosine of each pair [n], the vectors of all texts [2 n, d], and how many texts were cut; as `embed`."""
    vectors, cut = embed(model, tokenizer, [*pairs.first, *pairs.second], **options)
    one, two = vectors.double().chunk(2)
    return F.cosine_similarity(one, two, dim=-1), vectors, cut


def correlations(cosines: Tensor, scores: Sequence[float]) -> dict[str, float]:
    """Of predicted and given similarities; ties share their mean rank. Raises ValueError for what is not finite."""
    return {"spearmanr": spearmanr(cosines.numpy(), scores), "pearson": pearson(cosines.numpy(), scores)}


def cut_note(cut: int, pairs: Pairs) -> str | None:
    return f"{cut} of {2 * len(pairs)} texts are longer than the model reads, and were cut" if cut else None
