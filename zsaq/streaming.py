"""A large language model quantized from its files to files, in the memory of one block: `zsaq.quantize_files`."""

import dataclasses
import os
import platform
import time
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, Final

import psutil
import torch
from accelerate.utils import set_seed
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from zsaq.api import PACKAGES, budget_of
from zsaq.atomic import atomic_folder
from zsaq.io.checksums import fingerprint, write_checksums
from zsaq.io.corpus import Corpus
from zsaq.io.folder import place_of
from zsaq.io.readers import tokenizer_of
from zsaq.io.saving import weight_bytes
from zsaq.io.target import ready_target
from zsaq.io.teacher import name_of
from zsaq.io.verifying import verified
from zsaq.knowledge import used
from zsaq.language.defaults import usual_bits, usual_options
from zsaq.language.fits import recipe_of
from zsaq.language.job import TextJob
from zsaq.language.methods import METHODS, OWN, TEXT, auto
from zsaq.method import Effort, Method
from zsaq.quant.config import QuantConfig
from zsaq.quant.share import Share
from zsaq.report.card import base_of
from zsaq.run import Results, Row
from zsaq.stream.finishing import finish
from zsaq.stream.quantizing import ROUNDINGS, Rounding, check_ranges, planned
from zsaq.stream.quantizing import quantize_files as from_files
from zsaq.stream.skeleton import Skeleton
from zsaq.stream.weights import bytes_of
from zsaq.subject import Subject
from zsaq.train.logging import say
from zsaq.train.loop import Loop
from zsaq.train.pair import Batch, check_batch, listed
from zsaq.train.randomness import check_seed
from zsaq.train.streams import stream_of

FILES: Final = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "README.md")
HELD: Final = (4, 64)  # rows and tokens of text that teacher and student are compared on
SPARE: Final = 1.3  # times a model's bytes in float32, where it writes


def quantize_files(
    model: str | Path, folder: str | Path, config: str | QuantConfig | None = None, *, method: str = "auto",
    effort: Effort = "default", seed: int = 0, corpus: Any = None, batches: Iterable[Batch] | None = None,
    license: str | None = None, loop: Loop | None = None, **options: Any,
) -> Results:  # fmt: skip
    """The causal language model of a folder or Hub id, quantized without data and saved in `folder`, block by block.

    For models that do not fit into memory: what is held is one block, the states of the text before it, and, of the
    token table, what is looked up. The student is the one of `zsaq.quantize(model, config, method=method)`, to the bit,
    and `zsaq.load(folder)` reads it. `method`: "rtn", "gptq", "reconstruct" or "auto", with its options and `effort`;
    `gptq` and `reconstruct` read `corpus` (see `zsaq.quantize`), or `batches` of one's own, or else the text that the
    model writes itself, for which it has to fit into memory. The device of `loop` holds one block.

    Answers the results, which lie beside the student; with text also how near it is to its teacher, on rows that it was
    not rounded on: "kl" in nats a token, and "agreement". Without a `config`, or with method "auto", both are those of
    `zsaq.quantize`. Raises ValueError for another kind of model or method, where that choice trains the whole student
    too, for files that call weights otherwise than the model does, and as `zsaq.quantize` does. Tensors that the model
    has no place for are told.
    """
    began, loop = time.perf_counter(), loop or Loop()
    if loop.accelerator.num_processes > 1:
        raise ValueError("quantize_files runs in one process: start it without accelerate launch or torchrun")
    if corpus is not None and batches is not None:
        raise ValueError("corpus and batches are both text to round on: give one of them")
    check_seed(seed)
    if method not in ("auto", *ROUNDINGS):
        raise ValueError(f"method is {method!r}; block by block there are {', '.join(ROUNDINGS)}")
    source = located(model)
    target = ready_target(folder, size := bytes_of(source))
    skeleton, reader = Skeleton.of(source), tokenizer_of(source)
    if left := skeleton.unplaced:
        say(f"{type(skeleton.model).__name__} has no place for {len(left)} tensors in the files: {left[:4]}")
    if config is None:
        config, meaning = usual_bits(skeleton.model, "causal")
        say(f"no bits were given: {config}, {meaning}")
    config = QuantConfig.given(config)
    check_ranges(config)
    if method == "auto":
        method = auto("causal", config, effort)
        options = usual_options(METHODS[method], "causal", effort) | options
    rounding = rounding_of(method)
    row = METHODS[method]
    budget, origin, plan = budget_of(row, effort, options), base_of(str(model), license), planned(skeleton, config)
    set_seed(seed)
    chosen: list[Batch] = []
    held, knowledge, zero_shot = None, (), True
    if row.inputs == TEXT:
        if batches is not None:
            stream, zero_shot = stream_of(batches), False
        else:
            stream, knowledge, zero_shot = text_of(model, skeleton, reader, corpus, seed, row, loop)
        chosen, more = listed(islice(stream, budget["calibration"])), next(stream, None)
        held = None if more is None else unread(check_batch(more), chosen)
        del stream, more
    elif corpus is not None or batches is not None:
        raise ValueError(f"{method} reads no text: leave corpus and batches off, or take gptq")
    name = name_of(str(model))
    say(f"{method} on {name}, block by block: {str(budget) or 'nothing to spend'}")
    say(str(Share.of(skeleton.model, plan.chosen, plan.left)))
    with atomic_folder(target) as partial:
        partial.mkdir()
        recipe = recipe_of(budget) if rounding == "reconstruct" else None
        plan, near = from_files(
            source, partial, config, rounding=rounding, batches=chosen, held=held, recipe=recipe, seed=seed, loop=loop
        )
        covered = finish(source, partial, plan, None if method == "rtn" else torch.float32)
        if reader is not None:
            reader.save_pretrained(partial)
        write_checksums(partial)
        verified(partial)
        seconds = round(time.perf_counter() - began, 2)
        known = {} if near is None else dataclasses.asdict(near)
        own, read = corpus is None and batches is None, {"calibration": len(chosen)} if chosen else {}
        rows = (Row("teacher", size), Row(method, weight_bytes(partial), seconds, {} if own else known))
        inputs, numbers = row.inputs if batches is None else OWN, {"effort": effort, **budget.numbers} | read
        results = Results(
            name, method, plan.config, seed, zero_shot, inputs, rows, numbers,
            None, covered, knowledge=knowledge, base=origin, seconds=seconds,
            machine={"device": str(loop.accelerator.device), "threads": torch.get_num_threads(), "processes": 1},
            versions={each: version(each) for each in PACKAGES} | {"python": platform.python_version()},
            own_text=known if own else {}, fingerprint=fingerprint(partial),
        )  # fmt: skip
        results.write(partial)
    if near is not None:
        say(str(near) if own else near.on("of the given text, on none of whose rows it was rounded"))
    return results


def unread(more: Batch, chosen: list[Batch]) -> Batch | None:
    """Some rows of the batch `more` of which none is among the `chosen` ones; None where there are none. Raises
    ValueError for a mask that is not of its tokens."""
    for batch in (more, *chosen):
        shapes = [tuple(batch[name].shape) for name in ("input_ids", "attention_mask") if name in batch]
        if len(set(shapes)) > 1:
            raise ValueError(
                f"the batches hold input_ids {list(shapes[0])} and an attention_mask {list(shapes[1])}, by which no "
                "position can be told from another: give a mask of one number a token"
            )
    if "input_ids" not in more:
        return None
    known = {row for batch in chosen if "input_ids" in batch for row in texts_of(batch)}
    new = [number for number, row in enumerate(texts_of(more)) if row not in known][: HELD[0]]
    named = ("input_ids", "attention_mask")
    return {name: more[name][new, : HELD[1]] for name in named if name in more} if new else None


def texts_of(batch: Batch) -> list[tuple[int, ...]]:
    """The tokens of each row without its padding, which is another beside other rows."""
    counts = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    return [tuple(row[count].tolist()) for row, count in zip(batch["input_ids"], counts, strict=True)]


def rounding_of(method: str) -> Rounding:
    """Raises ValueError for a method that needs more than one block at a time."""
    for each in ROUNDINGS:
        if each == method:
            return each
    raise ValueError(f"{method} trains the whole student in memory; block by block there are {', '.join(ROUNDINGS)}")


def located(model: str | Path) -> Path:
    """The folder of a model, fetched from the Hub where it is an id. Raises ValueError."""
    place = place_of(model)
    if os.path.isdir(place):
        return Path(place)
    try:
        return Path(snapshot_download(place, allow_patterns=list(FILES), ignore_patterns=["*/*"]))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise ValueError(
            f"{model} is neither a folder here nor an id that the Hub gave ({error}): give one of them"
        ) from error


def text_of(
    model: str | Path, skeleton: Skeleton, reader: Any, corpus: Any, seed: int, row: Method, loop: Loop
) -> tuple[Iterator[Batch], tuple[str, ...], bool]:
    """The stream of text that `zsaq.quantize` would read, the words about the model that it was made of, and whether no
    real data is known to be in it. Raises ValueError for a model that is too large to write by itself here."""
    if corpus is not None:
        text = Corpus.of(corpus)
        job = TextJob.of(skeleton.model, reader, text_pair=text.text_pair)
        job.corpus = text.rows
        return job.text(seed), used(job, text), text.zero_shot
    need = int(SPARE * sum(4 * value.numel() for value in skeleton.model.parameters()))
    if need > (free := psutil.virtual_memory().available):
        raise ValueError(
            f"{model} would write its text with {need:,} bytes of memory, and {free:,} are free: give corpus=, which "
            "zsaq synthesize writes for and with a smaller model, or method='rtn'"
        )
    subject = Subject.of(model, tokenizer=reader)
    subject.prepare([row], loop)
    assert isinstance(subject.job, TextJob)
    return subject.job.text(seed), subject.knowledge(row), True
