"""From the generator's vocabulary to the teacher's input ("feature adaptation" in ZSAQ, which leaves its form open)."""

from abc import ABC, abstractmethod
from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zsaq.language.models import printable, token_table, token_texts
from zsaq.language.soft_text import SoftText
from zsaq.language.text import Text, encode, unknown
from zsaq.quant.codes import wide

BridgeKind = Literal["auto", "same", "vocabulary", "representation"]


class Bridge(nn.Module, ABC):
    """Brings the generator's text to the teacher: as token ids, or as embeddings with a gradient to the generator.

    `table` [V_G, d]: for each token of the generator its embedding in the teacher's space.
    """

    table: Tensor

    @abstractmethod
    def ids(self, text: Text) -> Text:
        """Content in the generator's vocabulary -> content in the teacher's."""

    def fit(self, soft: SoftText) -> None:
        """Learn from the generator's own text what the bridge needs to know; most need nothing."""

    def mixture(self, soft: SoftText) -> Tensor:
        """What the gradient sees of a position: [N, L, d]. Here sum_k p_k E[k] over the support, zeros at padding."""
        k = soft.ids.shape[-1]
        table = wide(self.table)
        weights = soft.log_probs.exp().to(table.dtype).view(-1, k)
        mixed = F.embedding_bag(soft.ids.view(-1, k), table, per_sample_weights=weights, mode="sum")
        return mixed.view(*soft.ids.shape[:2], -1)

    def embed(self, soft: SoftText) -> Tensor:
        """Embeddings [N, L, d]: straight-through, the sampled token's value with the mixture's gradient."""
        mixture = self.mixture(soft)
        return wide(F.embedding(soft.text.ids, self.table)) + (mixture - mixture.detach())


@final
class SameVocabulary(Bridge):
    """The teacher's own table: both speak the same tokens."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table.detach(), persistent=False)

    def ids(self, text: Text) -> Text:
        return text


@final
class VocabularyBridge(Bridge):
    """The table M E with a sparse M: row i is the mean one-hot of the teacher's pieces of the string of token i.

    The teacher's tokenizer normalises the string itself (lower case, accents); what it cannot say, and every special
    token, becomes its unknown token. One token of the generator is one position. Where every printable token of the
    generator is a token of the teacher by name (GPT-2 and OPT: the same BPE under other ids) M is an exact map of ids;
    elsewhere `ids` decodes and tokenises again, so a word of several pieces takes several positions there.

    `pieces` and `offsets` hold M as `torch.nn.functional.embedding_bag` reads it.
    """

    pieces: Tensor
    offsets: Tensor

    def __init__(self, generator: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, table: Tensor) -> None:
        """`table` [V, d]: the teacher's. Raises ValueError if fewer than half of the tokens mean anything there."""
        super().__init__()
        self.tokenizers = (generator, teacher)
        seen, target, nothing = printable(generator).tolist(), teacher.get_vocab(), unknown(teacher)
        names = generator.convert_ids_to_tokens(seen)
        self.exact = all(name in target for name in names)
        if self.exact:
            known = {i: target[token] for token, i in generator.get_vocab().items() if token in target}
            rows = [[known.get(i, nothing)] for i in range(max(generator.get_vocab().values()) + 1)]
        else:
            rows = teacher(token_texts(generator), add_special_tokens=False)["input_ids"]
            lost = sum(set(rows[i]) <= {nothing} for i in seen)
            if 2 * lost > len(seen):
                raise ValueError(
                    f"{lost} of the generator's {len(seen)} printable tokens are nothing in the teacher's vocabulary; "
                    "take a generator of the teacher's language"
                )
            rows = [row or [nothing] for row in rows]
        lengths = torch.tensor([0, *map(len, rows[:-1])])
        self.register_buffer("pieces", torch.tensor([i for row in rows for i in row]), persistent=False)
        self.register_buffer("offsets", lengths.cumsum(0), persistent=False)
        self.to(table.device)
        bridged = F.embedding_bag(self.pieces, wide(table.detach()), self.offsets, mode="mean")
        self.register_buffer("table", bridged, persistent=False)

    def ids(self, text: Text) -> Text:
        if self.exact:
            return Text(self.pieces[text.ids], text.mask)
        generator, teacher = self.tokenizers
        strings = generator.batch_decode(text.lists(), clean_up_tokenization_spaces=False)
        return encode(teacher, strings).to(text.ids.device)


@final
class RepresentationAdapter(Bridge):
    """x = W h + b on the generator's state h that the token was drawn from (the paper adapts representations too).

    `fit` solves a ridge regression on the generator's own text from h to the embedding of the token that was sampled,
    through the table of `inner`. The state before a token knows the token only in part, so W h is the expected
    embedding, off the teacher's manifold; hence by default the value is the sampled token's own embedding and W h lends
    the gradient (`straight`). With straight=False the value is W h itself.
    """

    def __init__(self, inner: Bridge, *, ridge: float = 1e-3, straight: bool = True) -> None:
        super().__init__()
        self.inner, self.ridge, self.straight = inner, ridge, straight
        self.register_buffer("table", inner.table, persistent=False)
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None

    def ids(self, text: Text) -> Text:
        return self.inner.ids(text)

    @torch.no_grad()
    def fit(self, soft: SoftText) -> None:
        """min over W, b of mean |W h + b - E[s]|^2 + ridge * tr(cov h) / d_G * |W|^2, in double precision."""
        h = soft.hidden[soft.text.mask].double()
        x = F.embedding(soft.text.ids[soft.text.mask], self.table).double()
        middle, target = h.mean(0), x.mean(0)
        h, x = h - middle, x - target
        gram = h.T @ h
        gram.diagonal().add_(self.ridge * gram.diagonal().mean())
        weight, dtype = torch.linalg.solve(gram, h.T @ x).T, wide(self.table[:1]).dtype
        self.weight, self.bias = (part.to(dtype) for part in (weight, target - weight @ middle))

    def mixture(self, soft: SoftText) -> Tensor:
        if self.weight is None:
            raise ValueError("the adapter knows nothing yet: call fit with text of the generator first")
        return F.linear(soft.hidden, self.weight, self.bias)

    def embed(self, soft: SoftText) -> Tensor:
        return super().embed(soft) if self.straight else self.mixture(soft)


def bridge_for(
    generator_tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase,
    teacher: PreTrainedModel,
    kind: BridgeKind = "auto",
) -> Bridge:
    """The bridge between two vocabularies. "auto": `SameVocabulary` where they are identical, else `VocabularyBridge`.

    Raises ValueError for an unknown kind, for "same" where the vocabularies differ, and see `VocabularyBridge`.
    """
    table = token_table(teacher).weight.detach()
    same = generator_tokenizer.get_vocab() == teacher_tokenizer.get_vocab()
    if kind == "same" and not same:
        sizes = len(generator_tokenizer), len(teacher_tokenizer)
        raise ValueError(
            f"the vocabularies differ ({sizes[0]} and {sizes[1]} tokens); take kind 'vocabulary' or 'auto'"
        )
    if kind not in ("auto", "same", "vocabulary", "representation"):
        raise ValueError(f"kind is {kind!r}; choose auto, same, vocabulary or representation")
    plain = same and kind != "vocabulary"
    inner = SameVocabulary(table) if plain else VocabularyBridge(generator_tokenizer, teacher_tokenizer, table)
    return RepresentationAdapter(inner) if kind == "representation" else inner
