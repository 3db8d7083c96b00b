"""How the embedded default's tokenizer, teacher and generator are trained: from scratch, small, the same every time."""

import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    get_linear_schedule_with_warmup,
)

from examples.embedded_corpus import Corpus

WORDS, PIECES, LENGTH = 2500, 1200, 64
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, BEGIN, END = (SPECIAL.index(token) for token in ("[PAD]", "[CLS]", "[SEP]"))
Texts = list[list[int]]
Log = Callable[[str], object]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Recipe:
    """`init`: standard deviation of the first weights; `size`: sentences a batch."""

    width: int
    layers: int
    init: float
    epochs: float
    lr: float
    size: int


# At the usual init of 0.02 so narrow a BERT learns little more than a bag of words, and 2 bits cost it nothing. At the
# inverse root of its fan-in, 64 ** -0.5, it needs all of its width.
TEACHER = Recipe(width=64, layers=4, init=0.115, epochs=6, lr=1.2e-3, size=32)
GENERATOR = Recipe(width=96, layers=2, init=0.02, epochs=4, lr=3e-3, size=32)


def train_tokenizer(sentences: list[str]) -> PreTrainedTokenizerFast:
    """Lower-case WordPiece; [CLS] and [SEP] are also a generator's begin and end.

    The vocabulary: every character, the most frequent words, and the most frequent ends ("##ing") of the other words.
    By counts with ties in the alphabet's order, because tokenizers' own trainers differ from run to run.
    """
    lower, words = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    counts = Counter(word for text in sentences for word, _ in words.pre_tokenize_str(lower.normalize_str(text)))
    ranked = sorted((word for word in counts if len(word) > 1), key=lambda word: (-counts[word], word))
    ends = Counter("##" + word[i:] for word in ranked[WORDS:] for i in range(1, len(word) - 1))
    pieces = sorted(ends, key=lambda end: (-ends[end] * (len(end) - 2), end))[:PIECES]
    characters = sorted(set("".join(counts)))
    vocabulary = [*SPECIAL, *characters, *("##" + c for c in characters), *ranked[:WORDS], *pieces]
    wordpiece = Tokenizer(models.WordPiece({token: i for i, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    wordpiece.normalizer, wordpiece.pre_tokenizer, wordpiece.decoder = lower, words, decoders.WordPiece()
    wordpiece.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", BEGIN), ("[SEP]", END)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=wordpiece,
        model_max_length=LENGTH,
        model_input_names=["input_ids", "attention_mask"],
        bos_token="[CLS]",
        eos_token="[SEP]",
        **{f"{token.strip('[]').lower()}_token": token for token in SPECIAL},
    )


def train_teacher(
    tokenizer: PreTrainedTokenizerFast, corpus: Corpus, recipe: Recipe, log: Log
) -> BertForSequenceClassification:
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.width // 32,
        intermediate_size=4 * recipe.width,
        initializer_range=recipe.init,
        max_position_embeddings=LENGTH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=PAD,
        id2label=dict(enumerate(corpus.names)),
        label2id={name: label for label, name in enumerate(corpus.names)},
    )
    teacher = BertForSequenceClassification(config)

    def loss(ids: Tensor, mask: Tensor, label: Tensor) -> Tensor:
        return cross_entropy(teacher(ids, mask).logits, label)

    texts = encode(tokenizer, [row["sentence"] for row in corpus.train])
    fit("teacher", list(teacher.parameters()), loss, texts, [row["label"] for row in corpus.train], recipe, log)
    return teacher.eval()


def train_generator(tokenizer: PreTrainedTokenizerFast, corpus: Corpus, recipe: Recipe, log: Log) -> OPTForCausalLM:
    config = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        word_embed_proj_dim=recipe.width,
        ffn_dim=4 * recipe.width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.width // 32,
        init_std=recipe.init,
        max_position_embeddings=LENGTH,
        dropout=0.0,
        pad_token_id=PAD,
        bos_token_id=BEGIN,
        eos_token_id=END,
    )
    generator = OPTForCausalLM(config)

    def loss(ids: Tensor, mask: Tensor, _: Tensor) -> Tensor:
        return generator(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss

    texts = encode(tokenizer, corpus.comments)
    fit("generator", list(generator.parameters()), loss, texts, [0] * len(texts), recipe, log)
    return generator.eval()


def encode(tokenizer: PreTrainedTokenizerFast, sentences: list[str]) -> Texts:
    return tokenizer(sentences, truncation=True)["input_ids"]


def batches(texts: Texts, labels: list[int], size: int, pad: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Endless shuffled batches of similar lengths: ids, mask [size, length], labels [size]; int64."""
    rng = random.Random(0)
    while True:
        order = rng.sample(range(len(texts)), len(texts))
        for start in range(0, len(order), size * 20):
            pool = sorted(order[start : start + size * 20], key=lambda i: len(texts[i]))
            groups = [pool[i : i + size] for i in range(0, len(pool), size)]
            for group in rng.sample(groups, len(groups)):
                rows = [torch.tensor(texts[i]) for i in group]
                ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
                yield ids, (ids != pad).long(), torch.tensor([labels[i] for i in group])


def fit(
    name: str, parameters: list[nn.Parameter], loss: Loss, texts: Texts, labels: list[int], recipe: Recipe, log: Log
) -> None:
    """AdamW, a tenth of warm-up and linear decay; ten progress lines. `loss` takes ids, mask and labels."""
    steps = math.ceil(recipe.epochs * len(texts) / recipe.size)
    optimizer = torch.optim.AdamW(parameters, recipe.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    stream, begin, recent = batches(texts, labels, recipe.size, PAD), time.time(), []
    for step in range(1, steps + 1):
        value = loss(*next(stream))
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        recent.append(value.item())
        if step * 10 // steps > (step - 1) * 10 // steps:
            log(f"{name}: step {step}/{steps}  loss {sum(recent) / len(recent):.3f}  {time.time() - begin:.0f} s")
            recent.clear()
