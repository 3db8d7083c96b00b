"""What the weights of a fine-tuned model remember of its texts, read beside the public base that it came from.

A row of the token table gets a gradient only where its token stands in a text: of all others fine-tuning changes
nothing, or weight decay shrinks them all alike. So the rows that moved are the vocabulary that the model was fine-tuned
on, the rows of positions tell its longest text, and the second row of segments whether it read pairs. No text is read
for that. Where rows do not fall into two kinds (LoRA, frozen or wholly trained tables, another base), that is told.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zsaq.language.models import pretrained, token_table, token_texts
from zsaq.language.rows import Rows
from zsaq.quant.model import is_quantized

APART: Final = 4.0  # distance of two kinds in their common deviation; the halves of one kind have up to 3.5
FEWEST: Final = 4  # rows of a kind, and one in SHARE of the table: fewer are accidents of a conversion
SHARE: Final = 2000
ALIKE: Final = 0.7  # how much of the base's row is in a row that was trained on from it; in a stranger's about 0


@final
@dataclass(frozen=True, eq=False)
class Fingerprint:
    """`moved` [V] bool: tokens that the model was fine-tuned on; `movement` [V]: by how much of their length their rows
    turned; `longest`: tokens of the longest text, special ones included, None where nothing tells; `pairs`: whether
    texts came in pairs, likewise; `silence`: why nothing is known of the tokens (nothing is `moved` then), or None.
    """

    moved: Tensor
    movement: Tensor
    longest: int | None
    pairs: bool | None
    silence: str | None

    @property
    def signal(self) -> bool:
        return self.silence is None

    @classmethod
    def of(cls, teacher: PreTrainedModel, base: PreTrainedModel) -> "Fingerprint":
        """Of a model that was fine-tuned from `base`; it may be a student of zsaq, whose base is then rounded as it is.

        What tells nothing is no error but `silence`. Raises ValueError for models without a token table and for a base
        that is quantized.
        """
        table, origin = token_table(teacher), token_table(base)
        if is_quantized(base):
            raise ValueError(f"the base {type(base).__name__} is quantized: give the float model that it was made of")
        unknown = torch.zeros(table.num_embeddings, dtype=torch.bool), torch.zeros(table.num_embeddings)
        if table.embedding_dim != origin.embedding_dim:
            widths = f"{table.embedding_dim} numbers wide, the base's {origin.embedding_dim}"
            return cls(*unknown, None, None, f"rows of tokens are {widths}: it is the base of another model")
        moved, movement = unknown
        rows = Rows.of(table, origin)
        bound, silence = split(rows)
        movement[: len(rows.movement)] = rows.movement
        if bound is not None:
            moved[: len(rows.movement)] = rows.movement > bound
        known = bound is not None
        return cls(moved, movement, longest_text(teacher, base, known), paired(teacher, base, known), silence)

    def words(self, tokenizer: PreTrainedTokenizerBase, count: int = 40) -> list[str]:
        """The words that moved most, as a person writes them; no pieces of words. [] where there is no signal."""
        if not self.signal:
            return []
        texts = token_texts(tokenizer)
        order = self.movement.argsort(descending=True).tolist()
        whole = (texts[i].strip() for i in order if self.moved[i] and i < len(texts) and is_word(texts[i]))
        return list(dict.fromkeys(whole))[:count]

    def alien(self, texts: Sequence[str] | Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase) -> float:
        """The share of the texts' tokens, special ones aside, that never moved: 0 is the task's own vocabulary.

        Raises ValueError where there is no signal, for texts without a token, and for a tokenizer of another model.
        """
        if self.silence is not None:
            raise ValueError(f"nothing is known of the texts that the model was fine-tuned on: {self.silence}")
        parts = [part for text in texts for part in ((text,) if isinstance(text, str) else text)]
        rows = tokenizer(parts, add_special_tokens=False, verbose=False)["input_ids"] if parts else []
        ids = torch.tensor([i for row in rows for i in row], dtype=torch.int64)
        if not len(ids):
            raise ValueError("the texts hold no token: give some that do")
        if int(ids.max()) >= len(self.moved):
            raise ValueError(f"a text's token is {int(ids.max())}, the model has {len(self.moved)}: give its tokenizer")
        return float((~self.moved[ids]).float().mean())


def split(rows: Rows) -> tuple[float | None, str | None]:
    """The movement above which a row was trained on, by two means of its logarithm; or None, and why there is none."""
    logs, still = rows.movement.clamp_min(rows.noise).log(), math.log(rows.still)
    few = max(FEWEST, len(logs) // SHARE)
    if int((logs > still).sum()) < few:
        return None, "no row of tokens moved (LoRA, a frozen table, or the model itself was given as its base)"
    bound = two_means(logs)
    high, low = logs[logs > bound], logs[logs <= bound]
    if len(low) < few or float(low.mean()) > still:
        return None, "every row of tokens moved (a table that was trained whole, or another base)"
    apart = (high.mean() - low.mean()) / ((high.var(correction=0) + low.var(correction=0)) / 2).sqrt()
    if len(high) < few or apart < APART:
        return None, "rows of tokens do not fall into those that moved and those that did not"
    if float(rows.kept[logs > bound].median()) < ALIKE:
        return None, "the rows that differ have nothing of the base's: it has another vocabulary"
    return math.exp(bound), None


def two_means(values: Tensor) -> float:
    """The bound between two groups [N] -> number with the least variance within them (Otsu's)."""
    ordered = values.double().sort().values
    sums, count = ordered.cumsum(0), torch.arange(1, len(ordered), device=values.device)
    below, above = sums[:-1] / count, (sums[-1] - sums[:-1]) / (len(ordered) - count)
    between = count * (len(ordered) - count) * (below - above) ** 2
    at = int(between.argmax())
    return float(below[at] + above[at]) / 2


def longest_text(teacher: PreTrainedModel, base: PreTrainedModel, known: bool) -> int | None:
    """Up to which position rows moved; None without learned positions, and where all moved and the base is not `known`
    to be the right one."""
    found = beside(teacher, base, lambda name: "position" in name or name == "wpe")
    if found is None:
        return None
    table, rows = found
    moved = (rows.movement > rows.still).nonzero().flatten().tolist()
    if not moved or (len(moved) == len(rows.movement) and not known):
        return None
    padding = table.padding_idx
    before = getattr(table, "offset", 0 if padding is None else padding + 1)  # RoBERTa's and OPT's begin behind
    return max(moved[-1] + 1 - before, 0) or None


def paired(teacher: PreTrainedModel, base: PreTrainedModel, known: bool) -> bool | None:
    """Whether the row of second texts moved; None where there is none, or where not even the first did."""
    found = beside(teacher, base, lambda name: "token_type" in name)
    if not known or found is None or found[0].num_embeddings < 2:
        return None
    first, second = (found[1].movement[:2] > found[1].still).tolist()
    return second if first or second else None


def beside(teacher: PreTrainedModel, base: PreTrainedModel, named) -> tuple[nn.Embedding, Rows] | None:
    """The teacher's first table of that name, and its rows beside the base's; None if one of them has none."""
    theirs = dict(pretrained(base).base_model.named_modules())
    for name, table in pretrained(teacher).base_model.named_modules():
        other = theirs.get(name)
        if isinstance(table, nn.Embedding) and isinstance(other, nn.Embedding) and named(name.rpartition(".")[2]):
            return (table, Rows.of(table, other)) if table.weight.shape == other.weight.shape else None
    return None


def is_word(text: str) -> bool:
    """Of what a token adds to a text behind a word: whether that is a word of its own and not a piece, letter or
    sign."""
    word = text.strip()
    return text[:1].isspace() and word.isalpha() and (len(word) > 2 or not word.isascii())
