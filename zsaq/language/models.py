"""What must be known of an architecture, read from its structure: blocks, tables, vocabulary."""

import re
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

from zsaq.language.text import filler

TaskKind = Literal["classification", "regression", "causal", "embedding"]
BARE = {  # without a head: their states are what embeddings are pooled from
    name
    for value in (*MODEL_MAPPING_NAMES.values(), *MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES.values())
    for name in ((value,) if isinstance(value, str) else value)
}
UNUSED = re.compile(r"\[unused\d+\]|<unused\d+>|madeupword\d+")  # rows that vocabularies keep in reserve


def pretrained(model: nn.Module) -> PreTrainedModel:
    """The model, seen as one of transformers. Raises ValueError if it is another."""
    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"{type(model).__name__} is no model of transformers; load it with an Auto class")
    return model


def block_list(model: nn.Module) -> nn.ModuleList:
    """The transformer blocks: the longest list of equal modules. Raises ValueError if there is none."""
    lists = [
        m
        for m in pretrained(model).base_model.modules()
        if isinstance(m, nn.ModuleList) and len({type(b) for b in m}) == 1
    ]
    if not lists:
        raise ValueError(f"{type(model).__name__} holds no list of equal blocks; give a transformer")
    return max(lists, key=len)


def blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The transformer blocks by name, in the order of their calls. Raises ValueError as `block_list` does."""
    ids = {id(block) for block in block_list(model)}
    return [(name, module) for name, module in model.named_modules() if id(module) in ids]


def token_table(model: nn.Module) -> nn.Embedding:
    """The table of word embeddings [V, d]. Raises ValueError if the model has none."""
    table = pretrained(model).get_input_embeddings()
    if not isinstance(table, nn.Embedding):
        raise ValueError(f"{type(model).__name__} reads no tokens: its input layer is {type(table).__name__}")
    return table


def output_layer(model: PreTrainedModel) -> nn.Linear:
    """The layer from states to tokens. Raises ValueError if the model writes no tokens."""
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise ValueError(f"{type(model).__name__} writes no tokens; take a causal language model")
    return head


def task_kind(model: nn.Module) -> TaskKind:
    """What the model answers. Raises ValueError if that is not the next token, one of several classes, a number or,
    without a head, the states of a text's tokens."""
    names = {kind.__name__ for kind in type(model).__mro__}
    config = pretrained(model).config
    if names & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()):
        return "causal"
    if not names & set(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values()):
        if names & BARE and model.main_input_name == "input_ids" and not config.is_encoder_decoder:
            return "embedding"
        raise ValueError(
            f"{type(model).__name__} is neither a causal language model nor a sequence classifier or a bare encoder"
        )
    if config.problem_type == "multi_label_classification":
        raise ValueError("a classifier with several labels at once is not supported; its answer is no distribution")
    single = config.num_labels == 1 or config.problem_type == "regression"
    return "regression" if single else "classification"


def known_task_kind(model: nn.Module) -> TaskKind | None:
    """`task_kind`, and None for every other head."""
    try:
        return task_kind(model)
    except ValueError:
        return None


def anchor(tokenizer: PreTrainedTokenizerBase) -> int:
    """The first token that is a plain word. Raises ValueError if there is none."""
    ids = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    for start in range(0, len(ids), 1024):
        some = ids[start : start + 1024]
        for i, word in zip(some, tokenizer.batch_decode([[i] for i in some]), strict=True):
            if word.strip().isascii() and word.strip().isalpha():
                return i
    raise ValueError("the vocabulary holds no token made of letters; is it a tokenizer of text?")


def token_texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What each id adds to a text behind a word: " the", "ing", "!"; "" for special, unused and missing ids.

    Bytes that are no character alone come out as U+FFFD.
    """
    vocabulary, first = tokenizer.get_vocab(), anchor(tokenizer)
    head = tokenizer.batch_decode([[first]], clean_up_tokenization_spaces=False)[0]
    special = set(tokenizer.all_special_ids)
    ids = sorted(i for token, i in vocabulary.items() if i not in special and not UNUSED.fullmatch(token))
    behind = tokenizer.batch_decode([[first, i] for i in ids], clean_up_tokenization_spaces=False)
    texts = [""] * (max(vocabulary.values()) + 1)
    for i, text in zip(ids, behind, strict=True):
        texts[i] = text.removeprefix(head)
    return texts


def printable(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Ids [P] int64 that a reader can see: no special, unused or blank token, no part of a character."""
    return torch.tensor([i for i, text in enumerate(token_texts(tokenizer)) if text.strip() and "\ufffd" not in text])


def check_ids(ids: dict[str, int], rows: int, model: str) -> None:
    """Raises ValueError for tokens beyond the `rows` of a model's table, by their names."""
    if beyond := {name: i for name, i in ids.items() if not 0 <= i < rows}:
        named = ", ".join(f"{name} is token {i}" for name, i in beyond.items())
        raise ValueError(
            f"{named}, and {model} has {rows} rows of tokens: the tokenizer, or the token ids in its configuration, "
            "are those of another model; give its own"
        )


@final
@dataclass(frozen=True)
class Vocabulary:
    """A causal model's tokens: how a text begins and ends, what stands inside (`content` [V] bool), `printable` [P]."""

    bos: int
    ends: tuple[int, ...]
    pad: int
    content: Tensor
    printable: Tensor

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> "Vocabulary":
        """Begin and end as the model's configuration names them, else as the tokenizer does ([CLS], [SEP] included).

        Raises ValueError if a text has no begin, or if the tokenizer has ids that the model has no row for.
        """
        rows, texts = output_layer(model).weight.shape[0], token_texts(tokenizer)
        if len(texts) > rows:
            raise ValueError(f"the tokenizer counts to {len(texts)}, the model has {rows} rows; they are no pair")
        begins = (model.config.bos_token_id, tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.eos_token_id)
        bos = next((i for i in begins if isinstance(i, int)), None)
        if bos is None:
            raise ValueError("neither model nor tokenizer names a token that begins a text; set tokenizer.bos_token")
        ends = model.config.eos_token_id
        if ends is None:
            ends = [i for i in (tokenizer.eos_token_id, tokenizer.sep_token_id) if isinstance(i, int)][:1]
        ends = tuple(ends) if isinstance(ends, list) else (ends,)
        check_ids({"bos": bos, "eos": max(ends, default=0), "pad": filler(tokenizer)}, rows, type(model).__name__)
        content = torch.zeros(rows, dtype=torch.bool)
        content[[i for i, text in enumerate(texts) if text]] = True
        content[[bos, *ends]] = False
        shown = torch.tensor([i for i, t in enumerate(texts) if t.strip() and "\ufffd" not in t and content[i]])
        return cls(bos, ends, filler(tokenizer), content.to(model.device), shown)
