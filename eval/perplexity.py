"""Perplexity: `python eval/perplexity.py --model DIR_OR_ID --text FILE [--window N] [--teacher DIR_OR_ID]`.

Also under `accelerate launch` and `torchrun`. Prints a table, then a JSON object as the last line.
`--separator` names what stands between the documents of a file (as "<|endoftext|>" between stories): each document is
then stripped and begins with the tokenizer's own special tokens, instead of the separator spelled out.
The convention is "gptq" (Frantar et al. 2023): the text is tokenized once, cut into windows that do not overlap, the
tail is dropped, the first token of each window is not predicted; exp of the mean over all predicted tokens.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from zsaq.atomic import check_file, write_text
from zsaq.eval import metrics
from zsaq.eval.chance import worse_than_uniform
from zsaq.eval.gathering import gather_rows, share
from zsaq.eval.metrics import kl_divergence
from zsaq.eval.pretrained import load_with_tokenizer
from zsaq.eval.reading import read_text
from zsaq.eval.suiting import counts, covers, logits_of, writes
from zsaq.quant.modes import evaluating
from zsaq.quant.positions import longest
from zsaq.script import positive, told
from zsaq.train.loop import processes

CONVENTION = "gptq"


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str, separator: str | None = None) -> Tensor:
    """The text as int64 ids, shape (length,): in one go or, with a separator, document by document, joined.

    Raises `ValueError` for a separator that is not in the text.
    """
    if separator is not None and (not separator or separator not in text):
        raise ValueError(f"separator {separator!r} is not in the text: give the one the file uses, or none")
    documents = [text] if separator is None else [part.strip() for part in text.split(separator) if part.strip()]
    # verbose=False: the text is longer than the model's context on purpose.
    encoded = tokenizer(documents, verbose=False)["input_ids"]
    return torch.tensor([token for document in encoded for token in document], dtype=torch.int64)


@torch.no_grad()
def perplexity(
    model: PreTrainedModel,
    ids: Tensor,
    window: int,
    *,
    teacher: PreTrainedModel | None = None,
    max_windows: int | None = None,
    batch_size: int | None = None,
    accelerator: Accelerator | None = None,
) -> dict[str, float]:
    """Perplexity of int64 token `ids`, shape (length,), by the convention "gptq" with windows of `window` tokens.

    Returns "perplexity", "nll" (nats a token), "windows", "tokens" (predicted ones); with a teacher on the same device
    also "kl" (mean KL(teacher || student), nats a token), "agreement" (share of equal arg max), "teacher_perplexity".
    `batch_size` windows are run at once, by default as many as make 2,048 tokens: peak memory is a few times
    batch x window x vocabulary x 4 bytes. With an `accelerator` of several processes all of them must call this.

    Raises `ValueError` for windows that fit neither the model nor the text, counts that are no integers, tokens that a
    model does not know, another vocabulary, or losses that are nan.
    """
    models = [model] if teacher is None else [model, teacher]
    for each in models:
        writes(each)
    context = min(longest(each) or sys.maxsize for each in models)
    if type(window) is not int or not 2 <= window <= context:
        raise ValueError(f"window is {window}: the model allows 2 to {context} tokens")
    counts(optional=True, max_windows=max_windows, batch_size=batch_size)
    for each in models:
        covers(each, ids)
    count = min(len(ids) // window, max_windows or len(ids))
    if not count:
        raise ValueError(f"{len(ids)} tokens do not fill a window of {window}: give a longer text or a smaller window")
    batch_size = batch_size or max(1, 2048 // window)
    windows = ids[: count * window].view(count, window)
    mine = share(range(count), accelerator)

    sums = [torch.empty(0, 1 if teacher is None else 4, device=model.device)]
    with evaluating(*models):
        for start in range(0, len(mine), batch_size):
            batch = windows[list(mine[start : start + batch_size])].to(model.device)
            sums.append(torch.stack(_measure([_answer(each, batch) for each in models], batch), 1))

    means = gather_rows(list(mine), torch.cat(sums), count, accelerator).double()
    if means.isnan().any():
        raise ValueError(f"{int(means.isnan().any(1).sum())} of {count} windows have nan losses: the model is broken")
    result = {"windows": count, "tokens": count * (window - 1), "nll": means[:, 0].mean().item()}
    result["perplexity"] = metrics.perplexity(means[:, 0])
    if teacher is not None:
        result |= {"kl": means[:, 2].mean().item(), "agreement": means[:, 3].mean().item()}
        result["teacher_perplexity"] = metrics.perplexity(means[:, 1])
    return result


def left_out(tokens: int, window: int, windows: int) -> str | None:
    """A note on the tokens that are not measured, if there are any."""
    if windows < tokens // window:
        return f"measured on the first {windows} of {tokens // window} windows of {window} tokens"
    tail = tokens - windows * window
    return f"the last {tail} of {tokens} tokens fill no window of {window} and are not measured" if tail else None


def _answer(model: PreTrainedModel, batch: Tensor) -> Tensor:
    return logits_of(model(input_ids=batch), tuple(batch.shape), type(model).__name__)


def _measure(logits: list[Tensor], batch: Tensor) -> list[Tensor]:
    """Means over each window, shape (batch,): NLL of each model and, of two, their KL and agreement."""
    if logits[0].shape != logits[-1].shape:
        raise ValueError(
            f"model and teacher have {logits[0].shape[-1]} and {logits[-1].shape[-1]} tokens: take its own"
        )
    views = [each[:, :-1].float() for each in logits]
    result = [F.cross_entropy(view.transpose(1, 2), batch[:, 1:], reduction="none").mean(1) for view in views]
    if len(views) == 2:
        result.append(kl_divergence(*views).mean(1))
        result.append((views[0].argmax(-1) == views[1].argmax(-1)).float().mean(1))
    return result


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line; returns what it prints as JSON."""
    parser = argparse.ArgumentParser(description='Perplexity of a causal language model, convention "gptq".')
    parser.add_argument("--model", required=True, help="folder or Hub id")
    parser.add_argument("--teacher", help="folder or Hub id of the model it came from: adds KL and agreement")
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="UTF-8 texts, joined by two newlines")
    parser.add_argument("--separator", help='what stands between documents in the text, as "<|endoftext|>"')
    parser.add_argument("--window", type=positive, help="tokens; default: the model's context, at most 2,048")
    parser.add_argument("--max_windows", type=positive, help="use only the first so many windows")
    parser.add_argument("--batch_size", type=positive, help="windows at once; default: 2,048 tokens' worth")
    parser.add_argument("--output", type=Path, help="also write the JSON to this file")
    args = parser.parse_args(argv)

    text = "\n\n".join(map(read_text, args.text))
    if args.output:
        check_file(args.output)
    accelerator = processes()
    model, tokenizer = load_with_tokenizer(args.model, AutoModelForCausalLM)
    teacher = load_with_tokenizer(args.teacher, AutoModelForCausalLM)[0] if args.teacher else None
    ids = tokenize(tokenizer, text, args.separator)
    window = args.window or min(2048, longest(model) or 2048)
    models = [each if each is None else each.to(accelerator.device) for each in (model, teacher)]
    values = perplexity(
        models[0],  # pyright: ignore[reportArgumentType]
        ids,
        window,
        teacher=models[1],  # pyright: ignore[reportArgumentType]
        max_windows=args.max_windows,
        batch_size=args.batch_size,
        accelerator=accelerator,
    )
    settings = {"model": args.model, "teacher": args.teacher, "text": [str(file) for file in args.text]}
    settings |= {
        "separator": args.separator,
        "convention": CONVENTION,
        "windows_are": "non-overlapping",
        "unit": "per token; kl in nats",
    }
    notes = [left_out(len(ids), window, int(values["windows"]))]
    for who in ("", "teacher_") if args.teacher else ("",):
        low = worse_than_uniform(values[f"{who}perplexity"], model.config.get_text_config().vocab_size)
        notes.append(f"{'teacher' if who else 'model'}: {low}" if low else None)
    report = {**settings, "window": window, **values, "notes": [note for note in notes if note]}
    if accelerator.is_main_process:
        view = Table("quantity", "value")
        for name, value in values.items():
            view.add_row(name, f"{value:.6g}" if isinstance(value, float) else f"{value:,}")
        print(
            f"{args.model}: perplexity per token, convention {CONVENTION}, non-overlapping windows of {window} tokens"
        )
        Console().print(view)
        print("".join(f"{note}\n" for note in report["notes"]), end="")
        if args.output:
            write_text(args.output, json.dumps(report, indent=2) + "\n")
        print(json.dumps(report), flush=True)
    accelerator.end_training()
    return report


if __name__ == "__main__":
    with told():
        main()
