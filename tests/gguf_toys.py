"""Tiny causal models of each kind that llama.cpp has, with tokenizers that are trained on a few words."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as T
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from zsaq.deploy.gguf.vocabulary import SPLITS
from zsaq.io.saving import save
from zsaq.quant.config import QuantConfig
from zsaq.quant.model import quantize_model

WORDS = [
    "the quick brown fox jumps over the lazy dog",
    "don't we'll 1234567 tokens and spaces",
    "naïve café you're it's",
]
SIZE = 400
CHAT = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}assistant: "


def byte_level(split: str = "gpt-2") -> PreTrainedTokenizerFast:
    """Merges of bytes, with text split in a way that llama.cpp has this name for."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=split == "llama-bpe"))
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split in ("gpt-2", "smollm"))
    first: Any = {"smollm": pre_tokenizers.Digits(individual_digits=True)}
    first |= {name: pre_tokenizers.Split(Regex(text), "isolated") for text, name in SPLITS.items()}
    steps = [first[split], plain] if split in first else [plain]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else plain
    tokenizer.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    special = [
        "<|end|>",
        "<|im|>",
        *(["<|endoftext|>"] if split == "qwen2" else []),
    ]  # which Qwen 2's class adds itself
    tokenizer.train_from_iterator(
        WORDS, trainers.BpeTrainer(vocab_size=330, special_tokens=special, initial_alphabet=letters)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|im|>", eos_token="<|end|>")


def sentence_piece(prefix: bool = True, begin: bool = True) -> PreTrainedTokenizerFast:
    """Merges of letters, with spaces as letters of their own and unknown ones as bytes."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.train_from_iterator(WORDS, trainers.BpeTrainer(vocab_size=90))
    told = json.loads(trained.to_str())["model"]
    first = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    names = [*first, *(name for name in sorted(told["vocab"], key=told["vocab"].get))]
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in told["merges"]]
    vocabulary = {name: i for i, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps = [*([normalizers.Prepend("▁")] if prefix else []), normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


SHAPE: dict[str, Any] = {
    "vocab_size": SIZE, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 128, "initializer_range": 0.1, "bos_token_id": 1, "eos_token_id": 0,
    "pad_token_id": None,
}  # fmt: skip
GROUPED: dict[str, Any] = SHAPE | {"num_key_value_heads": 2}
HEADS: dict[str, Any] = GROUPED | {"head_dim": 32}
GEMMA: dict[str, Any] = HEADS | {"query_pre_attn_scalar": 32, "sliding_window": 16}
DEEP: dict[str, Any] = GEMMA | {"num_hidden_layers": 6}
LLAMA3: Any = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
TEACHERS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: T.LlamaForCausalLM(T.LlamaConfig(**GROUPED, tie_word_embeddings=True)),
    "llama-untied": lambda: T.LlamaForCausalLM(T.LlamaConfig(**GROUPED, attention_bias=True)),
    "llama-3": lambda: T.LlamaForCausalLM(T.LlamaConfig(**GROUPED, rope_parameters=LLAMA3)),
    "llama-linear": lambda: T.LlamaForCausalLM(
        T.LlamaConfig(**GROUPED, rope_parameters={"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0})
    ),
    "mistral": lambda: T.MistralForCausalLM(T.MistralConfig(**HEADS, sliding_window=100)),
    "qwen2": lambda: T.Qwen2ForCausalLM(T.Qwen2Config(**GROUPED)),
    "qwen3": lambda: T.Qwen3ForCausalLM(T.Qwen3Config(**HEADS)),
    "gemma": lambda: T.GemmaForCausalLM(T.GemmaConfig(**HEADS)),
    "gemma2": lambda: T.Gemma2ForCausalLM(T.Gemma2Config(**GEMMA)),
    "gemma3": lambda: T.Gemma3ForCausalLM(T.Gemma3TextConfig(**DEEP)),
    "phi3": lambda: T.Phi3ForCausalLM(T.Phi3Config(**GROUPED)),
    "gpt2": lambda: T.GPT2LMHeadModel(T.GPT2Config(**SHAPE)),
}


def saved(kind: str, text: str | QuantConfig, folder: Path, tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> Path:
    """A student of a tiny teacher, rounded to nearest, with weights and norms that are not as they were made."""
    torch.manual_seed(seed)
    teacher = TEACHERS[kind]().eval()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return save(quantize_model(teacher, QuantConfig.given(text)), folder / "student", tokenizer)
