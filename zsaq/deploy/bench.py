"""How fast and how large, on this machine, in one run: the runtimes take turns, so that all see the same load."""

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from zsaq.atomic import check_file, told
from zsaq.deploy import generation
from zsaq.deploy.parity import exported_size, machine
from zsaq.deploy.rounds import MEMORY, Contender, Turns
from zsaq.deploy.runtimes import RUNTIMES
from zsaq.deploy.timing import BASE, OURS, Bench, Inputs, Run, floats_of
from zsaq.io.added import BENCH, write_added
from zsaq.io.checksums import fingerprint
from zsaq.io.inputs import random_inputs, text_limit
from zsaq.io.loading import load

TEXT_SHAPES: Final = ((1, 2), (1, 16), (1, 128), (16, 128))  # batch, tokens
IMAGE_SHAPES: Final = ((1,), (16,))  # batch


def bench(
    folder: str | Path,
    shapes: tuple[tuple[int, ...], ...] | None = None,
    repeats: int = 10,
    threads: int | None = None,
    write: bool = False,
    size: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Latency in milliseconds (best and median), bytes on disk and memory of each runtime, interleaved.

    `shapes`: (batch, tokens) for text, (batch,) for images. `threads`: as torch has them, for all runtimes. `size`: of
    images, as in `verify`. A runtime that is not installed, or that fails on this model, is told in `left_out` with its
    reason; linear layers that a peer leaves in floats, as its users do, in its row's `in_floats`. `slower` names, by
    shape, the runtimes that are faster than our export. Of a causal language model `generation` tells the time to the
    first token, and tokens a second after it. With `write` all goes into the folder, as bench.json. Raises ValueError
    as `zsaq.load` does, for fewer than one repeat or thread, for shapes that the model does not take, and with `write`
    for a folder that cannot be written to.
    """
    folder = Path(folder)
    before = torch.get_num_threads()
    threads = before if threads is None else threads
    if type(repeats) is not int or type(threads) is not int or min(repeats, threads) < 1:
        raise ValueError(f"repeats is {repeats!r} and threads {threads!r}; give whole numbers, at least 1")
    if write:
        check_file(folder / BENCH)
    model = load(folder, dtype=torch.float32)
    image = model.main_input_name == "pixel_values"
    size = exported_size(folder) if size is None else size
    if shapes is None:
        shapes = IMAGE_SHAPES if image else tuple(s for s in TEXT_SHAPES if s[1] <= text_limit(model))
    batches = {"x".join(map(str, shape)): random_inputs(model, shape, size=size) for shape in shapes}
    if not batches:
        raise ValueError("shapes is empty; give at least one")
    asked = generation.prompt_for(model) if generation.generates(model) else None
    twin = floats_of(model)
    del model  # every runtime loads its own
    torch.set_num_threads(threads)
    try:
        with tempfile.TemporaryDirectory(prefix="zsaq-") as work, told(Path(work)):
            subject = Bench(twin, folder, Path(work), threads, size)
            twin.save_pretrained(subject.work / "floats")
            timed = raced({r.name: r.time for r in RUNTIMES if r.time}, subject, elapsed, batches, repeats)
            written = {}
            if asked is not None:
                makers = {r.name: r.generate for r in RUNTIMES if r.generate}
                written = {
                    "generation": text(raced(makers, subject, generation.measure, {"text": asked}, repeats), *asked)
                }
    finally:
        torch.set_num_threads(before)
    rows = latencies(timed)
    table = {
        "machine": machine(),
        "threads": threads,
        "processors": os.cpu_count(),
        "repeats": repeats,
        "memory": MEMORY,
        "rows": list(rows.values()),
        "left_out": timed.left_out,
        "slower": slower_at(rows),
        **written,
    }
    if write:
        write_added(folder / BENCH, table, fingerprint(folder))
    return table


def raced(
    makers: Mapping[str, Callable[[Bench], Any]],
    subject: Bench,
    measure: Callable[[Any, Any], tuple[float, ...]],
    items: Mapping[str, Any],
    repeats: int,
) -> Turns:
    """All that can be made of the subject, after its turns; let go of, so that others have the memory."""
    ours = {runtime.name for runtime in RUNTIMES if runtime.ours}
    turns = Turns(measure, items)
    for name, make in makers.items():
        turns.prepare(Contender(name, partial(make, subject), name in ours, needed=name == BASE))
        torch.set_num_threads(subject.threads)  # whatever a peer made of them
    turns.take(repeats)
    turns.made.clear()
    return turns


def elapsed(run: Run, inputs: Inputs) -> tuple[float]:
    """Milliseconds that a batch takes."""
    begin = time.perf_counter()
    run(inputs)
    return ((time.perf_counter() - begin) * 1e3,)


def latencies(turns: Turns) -> dict[str, dict[str, Any]]:
    """The rows with their times, and with ratios to those in floats."""
    rows = {}
    for name, row in turns.rows.items():
        ms = {}
        for shape, rounds in turns.taken[name].items():
            times = [taken for (taken,) in rounds]
            ms[shape] = {"best": min(times), "median": float(np.median(times))}
        rows[name] = row | {"ms": ms}
    for row in rows.values():
        row["faster"] = {s: rows[BASE]["ms"][s]["best"] / t["best"] for s, t in row["ms"].items()}
        row["smaller"] = rows[BASE]["bytes"] / row["bytes"]
    return rows


def text(turns: Turns, prompt: list[int], count: int) -> dict[str, Any]:
    """The table of generation: the best and the median first token, in ms, and rate, in tokens a second."""
    rows = []
    for name, row in turns.rows.items():
        first, rate = zip(*turns.taken[name]["text"], strict=True)
        ms = {"best": min(first), "median": float(np.median(first))}
        rows.append(row | {"first_ms": ms, "tokens_a_second": {"best": max(rate), "median": float(np.median(rate))}})
    for row in rows:
        row["faster"] = row["tokens_a_second"]["best"] / rows[0]["tokens_a_second"]["best"]
    return {"prompt": len(prompt), "new": count, "rows": rows, "left_out": turns.left_out}


def slower_at(rows: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """By shape, the runtimes whose best time is below that of our export; nothing without one."""
    ours = rows[OURS]["ms"] if OURS in rows else {}
    quicker = {s: [n for n, row in rows.items() if row["ms"][s]["best"] < ours[s]["best"]] for s in ours}
    return {shape: names for shape, names in quicker.items() if names}
