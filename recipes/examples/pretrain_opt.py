"""Pretrain a small OPT (or GPT-2) from scratch on text that you give: a generator for ZSAQ, or a home-made teacher.

    accelerate launch recipes/examples/pretrain_opt.py --text reviews.parquet news.txt \\
        --tokenizer ../shared/data/minilm-sst2 --unit sentence --output_dir outputs/generator

`--unit sentence` trains on single sentences between the tokenizer's begin and end tokens, which is what a generator for
sentence classifiers should speak; `--unit window` packs the text into windows, as language models are usually trained.
"""

import argparse
import json
import math
import random
import re
import time
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    get_cosine_schedule_with_warmup,
)

from zsaq.atomic import atomic_folder
from zsaq.io.target import ready_new
from zsaq.script import given, natural, positive, told
from zsaq.train.loop import processes

with told():
    from zsaq.eval.reading import read_table, read_text
    from zsaq.io.readers import tokenizer_of

Ids = list[int]


def read_documents(paths: list[str]) -> list[str]:
    """The documents of text files (one a line) and of parquet files (column `text`)."""
    documents: list[str] = []
    for path in paths:
        if path.endswith(".parquet"):
            rows = read_table(Path(path))
            if not all(isinstance(row.get("text"), str) for row in rows):
                raise ValueError(f"{path} has no column text that holds a text in each row")
            documents += (row["text"] for row in rows)
        else:
            documents += read_text(path).replace("<|endoftext|>", "\n").splitlines()
    return [text for text in (re.sub(r"\s+", " ", d).strip() for d in documents) if text and not text.startswith("= ")]


def sentences(documents: list[str]) -> list[str]:
    cut = re.compile(r"(?<=[.!?;])\s+|<br />")
    return [s for d in documents for s in (part.strip() for part in cut.split(d)) if 3 <= len(s.split()) <= 60]


def train_bpe(documents: list[str], size: int) -> PreTrainedTokenizerFast:
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(documents, vocab_size=size, special_tokens=["<pad>", "</s>"], show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, pad_token="<pad>", bos_token="</s>", eos_token="</s>", unk_token="</s>"
    )


def examples(documents: list[str], tokenizer, unit: str, length: int, first: int, last: int) -> list[Ids]:
    encode = lambda texts: tokenizer(texts, add_special_tokens=False)["input_ids"]  # noqa: E731
    if unit == "sentence":
        return [[first, *ids[: length - 2], last] for ids in encode(sentences(documents)) if len(ids) > 2]
    stream = [token for ids in encode(documents) for token in (*ids, last)]
    return [stream[i : i + length] for i in range(0, len(stream) - length + 1, length)]


def batches(data: list[Ids], size: int, pad: int, seed: int):
    """Endless shuffled batches of similar lengths: `input_ids`, `attention_mask`, `labels` [size, length], int64."""
    rng = random.Random(seed)
    while True:
        rng.shuffle(data)
        for start in range(0, len(data), size * 50):
            pool = sorted(data[start : start + size * 50], key=len)
            groups = [pool[i : i + size] for i in range(0, len(pool) - size + 1, size)]
            rng.shuffle(groups)
            for group in groups:
                width = max(map(len, group))
                ids = torch.tensor([row + [pad] * (width - len(row)) for row in group])
                mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in group])
                yield {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


class NextToken(torch.nn.Module):
    """Next-token cross entropy; the softmax is over the batch's tokens and `negatives` random others, weighted up.

    A module of its own, so that its forward pass goes through DistributedDataParallel.
    """

    def __init__(self, model: PreTrainedModel, negatives: int) -> None:
        super().__init__()
        self.model, self.negatives = model, negatives

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        hidden = self.model.base_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state[:, :-1]
        targets, keep = labels[:, 1:], labels[:, 1:] != -100
        head: Any = self.model.get_output_embeddings()
        head = head.weight
        present, index = targets[keep].unique(return_inverse=True)
        if not 0 < self.negatives < len(head) - len(present):
            return torch.nn.functional.cross_entropy(hidden[keep] @ head.T, targets[keep])
        absent = torch.ones(len(head), device=head.device).index_fill(0, present, 0.0)
        others = torch.multinomial(absent, self.negatives)
        logits = hidden[keep] @ head[torch.cat([present, others])].T
        weight = torch.zeros(logits.shape[1], device=head.device)
        weight[len(present) :] = math.log((len(head) - len(present)) / self.negatives)
        return torch.nn.functional.cross_entropy(logits + weight, index)


def vocabulary(name: str) -> int:
    """The number of tokens in "bpe:8192". Raises ValueError for anything else."""
    if not re.fullmatch(r"bpe:\d{3,6}", name) or int(name.removeprefix("bpe:")) < 258:
        raise ValueError(f"--tokenizer is {name!r}; give bpe: and a number of tokens from 258, such as bpe:8192")
    return int(name.removeprefix("bpe:"))


def build(arch: str, hidden: int, embed: int, layers: int, length: int, **ids: Any) -> PreTrainedModel:
    """`ids`: vocab_size, pad_token_id, bos_token_id, eos_token_id."""
    if arch == "gpt2":
        config = GPT2Config(n_embd=hidden, n_layer=layers, n_head=hidden // 64, n_positions=length, **ids)
        return GPT2LMHeadModel(config)
    sizes: dict[str, Any] = {"hidden_size": hidden, "ffn_dim": 4 * hidden, "word_embed_proj_dim": embed}
    sizes |= {"num_hidden_layers": layers, "num_attention_heads": hidden // 64, "max_position_embeddings": length}
    return OPTForCausalLM(OPTConfig(dropout=0.0, **sizes, **ids))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--text", nargs="+", required=True, help="text files (a document a line) or parquet files (column text)"
    )
    parser.add_argument(
        "--tokenizer", default="bpe:8192", help="folder or Hub id; bpe:N trains N byte-level tokens on the text"
    )
    parser.add_argument("--arch", choices=["opt", "gpt2"], default="opt")
    parser.add_argument("--unit", choices=["sentence", "window"], default="sentence")
    parser.add_argument("--hidden", type=positive, default=256)
    parser.add_argument("--embed", type=positive, default=128, help="OPT's word_embed_proj_dim")
    parser.add_argument("--layers", type=positive, default=4)
    parser.add_argument("--length", type=positive, default=64, help="longest sequence, in tokens")
    parser.add_argument("--batch", type=positive, default=32)
    parser.add_argument(
        "--negatives", type=natural, default=2048, help="random tokens in the softmax; 0 takes the whole vocabulary"
    )
    parser.add_argument("--steps", type=positive, default=3000)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=natural, default=0)
    parser.add_argument("--output_dir", required=True)
    args = parser.parse_args()
    if args.hidden % 64 or args.length < 3:
        raise ValueError(f"--hidden {args.hidden} must be a multiple of 64, --length {args.length} at least 3")
    if args.arch == "gpt2" and given(parser, None, ("embed",)):
        parser.error("--embed is OPT's: leave it off for gpt2")
    tokens = vocabulary(args.tokenizer) if args.tokenizer.startswith("bpe:") else None
    target = ready_new(args.output_dir)

    set_seed(args.seed)
    accelerator = processes()
    documents = read_documents(args.text)
    if tokens is not None:
        tokenizer = train_bpe(documents, tokens)
    else:
        tokenizer: Any = tokenizer_of(args.tokenizer)
        if tokenizer is None:
            raise ValueError(f"{args.tokenizer} has no tokenizer: give a folder or id that has one, or bpe:8192")
    bos: Any = tokenizer.cls_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    eos: Any = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    pad: Any = eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    if bos is None or eos is None:
        raise ValueError(f"{args.tokenizer} has no tokens for begin and end; give another tokenizer, or bpe:8192")
    data = examples(documents, tokenizer, args.unit, args.length, bos, eos)
    if len(data) < args.batch:
        raise ValueError(f"{args.text} make {len(data)} sequences, fewer than --batch {args.batch}: give more text")
    accelerator.print(f"{len(data)} sequences, {sum(map(len, data))} tokens")

    ids = {"vocab_size": len(tokenizer), "pad_token_id": pad, "bos_token_id": bos, "eos_token_id": eos}
    model = build(args.arch, args.hidden, args.embed, args.layers, args.length, **ids)
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = get_cosine_schedule_with_warmup(optimizer, min(200, args.steps // 10), args.steps)
    model.to(accelerator.device).train()
    wrapped, optimizer = accelerator.prepare(NextToken(model, args.negatives), optimizer)
    stream = batches(data, args.batch, pad, args.seed + accelerator.process_index)
    begin, losses = time.time(), []
    for step in range(1, args.steps + 1):
        batch = {k: v.to(accelerator.device) for k, v in next(stream).items()}
        loss = wrapped(**batch)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(wrapped.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise ValueError(f"the loss is {losses[-1]} at step {step}: lower --lr (now {args.lr})")
        if step % 100 == 0 or step == args.steps:
            mean = sum(losses[-100:]) / len(losses[-100:])
            accelerator.print(
                f"step {step}/{args.steps}  perplexity {math.exp(mean):.1f}  {time.time() - begin:.0f} s", flush=True
            )
    if accelerator.is_main_process:
        model.generation_config.update(pad_token_id=pad, bos_token_id=bos, eos_token_id=eos)
        record = {
            **vars(args),
            "tokens": sum(map(len, data)),
            "perplexity": math.exp(mean),
            "seconds": time.time() - begin,
        }
        with atomic_folder(target, ready_new) as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            (folder / "pretraining.json").write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    with told():
        main()
