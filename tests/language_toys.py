"""Toy tokenizers and models for the generator's side, built in memory."""

import string
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from zsaq import Loop, QuantConfig
from zsaq.language.bridge import BridgeKind, bridge_for
from zsaq.language.job import TextJob
from zsaq.language.layout import Layout
from zsaq.language.methods import METHODS
from zsaq.language.text_generator import TextGenerator
from zsaq.method import Budget

WORDS = "the a film is was good bad very and not it of story actor plays well badly in this that".split()
PROSE = [
    "the film is very good and the story was not bad",
    "this actor plays well in that story",
    "it was badly played",
]
REAL = ["the film is good", "the story was bad", "this actor plays well", "it was not very good"] * 4
FEW = {"steps": 2, "warm": 1, "calibration": 2, "ratio": (1, 1)}
W4 = QuantConfig.parse("w4a8")


def wordpiece(extra: tuple[str, ...] = (), types: bool = True) -> PreTrainedTokenizerFast:
    tokens = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase]
    tokens += [f"##{c}" for c in string.ascii_lowercase] + [".", ",", "!"] + [w for w in WORDS if len(w) > 1]
    tokens += ["##ly", "##s", *extra] if "##s" not in tokens else ["##ly", *extra]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    core = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    ends = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=ends
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=32,
        model_input_names=["input_ids", *(["token_type_ids"] if types else []), "attention_mask"],
    )


def bpe(turn: int = 0, template: tuple[str, str] | None = None) -> PreTrainedTokenizerFast:
    """Byte-level BPE; `turn` rotates the ids of its ordinary tokens, `template` is of (single, pair)."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<pad>", "</s>"]
    trainer = BpeTrainer(
        vocab_size=330,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(PROSE * 3, trainer)
    if turn:
        import json

        state = json.loads(core.to_str())
        n = len(state["model"]["vocab"]) - 2
        state["model"]["vocab"] = {
            t: i if t in special else 2 + (i - 2 + turn) % n for t, i in state["model"]["vocab"].items()
        }
        core = Tokenizer.from_str(json.dumps(state))
    core.decoder = decoders.ByteLevel()
    if template:
        core.post_processor = processors.TemplateProcessing(
            single=template[0], pair=template[1], special_tokens=[("</s>", 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="</s>",
        eos_token="</s>",
        unk_token="</s>",
        model_max_length=32,
        model_input_names=["input_ids", "attention_mask"],
    )


def opt(tokenizer: PreTrainedTokenizerFast, spare: int = 5, scale: float = 0.3, embed: int = 32) -> OPTForCausalLM:
    """A generator with `spare` rows more than its tokenizer has tokens, as OPT's own."""
    torch.manual_seed(1)
    ids = tokenizer.get_vocab()
    pad, bos, eos = (
        ids[name] for name in (("[PAD]", "[CLS]", "[SEP]") if "[CLS]" in ids else ("<pad>", "</s>", "</s>"))
    )
    config = OPTConfig(
        vocab_size=len(tokenizer) + spare,
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        word_embed_proj_dim=embed,
        init_std=scale,
        dropout=0.0,
        pad_token_id=pad,
        bos_token_id=bos,
        eos_token_id=eos,
    )
    return OPTForCausalLM(config).eval()


def bert(tokenizer: PreTrainedTokenizerFast, labels: int = 3, seed: int = 2) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        initializer_range=0.3,
        pad_token_id=tokenizer.get_vocab().get("[PAD]", 0),
    )
    config.num_labels = labels
    return BertForSequenceClassification(config).eval()


def text_generator(
    kind: BridgeKind = "auto", source=wordpiece, text_pair: bool = False, labels: int = 3, **options
) -> tuple[TextGenerator, PreTrainedModel]:
    generator, tokenizer = source(), wordpiece()
    teacher = bert(tokenizer, labels)
    bridge = bridge_for(generator, tokenizer, teacher, kind)
    options = {"batch_size": 8, "length": (2, 8), "refresh": 3, **options}
    return TextGenerator(opt(generator), generator, bridge, Layout.of(tokenizer, 32, text_pair), **options), teacher


def job_of(kind: str, **options: Any) -> TextJob:
    """A classifier with a generator of another vocabulary, or a causal model that writes for itself."""
    if kind == "bert":
        tokenizer = wordpiece()
        job = TextJob.of(bert(tokenizer), tokenizer, generator=(opt(bpe()), bpe()), real=lambda: REAL, **options)
    else:
        job = TextJob.of(opt(bpe()), bpe(), real=lambda: REAL, max_length=16, **options)
    job.batch_size, job.style = 4, {"refresh": 2}
    job.length = (4, 10) if kind == "bert" else job.length
    job.given = [next(job.noise(0)) for _ in range(1)]
    return job


def fit(name: str, job: TextJob, config: QuantConfig = W4, seed: int = 3, **given: Any) -> PreTrainedModel:
    method = METHODS[name]
    few = {key: value for key, value in FEW.items() if key in method.options()}
    return method.fit(job, config, Budget.of(method, "light", few | given), seed, Loop())
