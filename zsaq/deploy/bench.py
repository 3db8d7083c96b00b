"""How fast and how large, on this machine, in one run: the runtimes take turns, so that all see the same load."""

import gc
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from zsaq.atomic import check_file, told
from zsaq.deploy.parity import machine
from zsaq.deploy.runtimes import RUNTIMES
from zsaq.deploy.timing import BASE, OURS, Bench, Inputs, Run, floats_of
from zsaq.io.added import BENCH, write_added
from zsaq.io.checksums import fingerprint
from zsaq.io.inputs import random_inputs, text_limit
from zsaq.io.loading import load

TEXT_SHAPES: Final = ((1, 2), (1, 16), (1, 128), (16, 128))  # batch, tokens
IMAGE_SHAPES: Final = ((1,), (16,))  # batch
MEMORY: Final = "growth of this process while a runtime was made and first run, one after the other: a rough figure"


def resident() -> int:
    """Bytes of this process that lie in memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the kernel tells no VmRSS")


def bench(
    folder: str | Path,
    shapes: tuple[tuple[int, ...], ...] | None = None,
    repeats: int = 10,
    threads: int | None = None,
    write: bool = False,
) -> dict[str, Any]:
    """Latency in milliseconds (best and median), bytes on disk and memory of each runtime, interleaved.

    `shapes`: (batch, tokens) for text, (batch,) for images. `threads`: as torch has them, for all runtimes. A runtime
    that is not installed, or that fails on this model, is told in `left_out` with its reason. `slower` names, by shape,
    the runtimes that are faster than our export. With `write` all goes into the folder, as bench.json. Raises
    ValueError as `zsaq.load` does, for fewer than one repeat or thread, for shapes that the model does not take, and
    with `write` for a folder that cannot be written to.
    """
    folder = Path(folder)
    before = torch.get_num_threads()
    threads = before if threads is None else threads
    if min(repeats, threads) < 1:
        raise ValueError(f"repeats is {repeats} and threads {threads}; give at least 1")
    if write:
        check_file(folder / BENCH)
    model = load(folder, dtype=torch.float32)
    image = model.main_input_name == "pixel_values"
    if shapes is None:
        shapes = IMAGE_SHAPES if image else tuple(s for s in TEXT_SHAPES if s[1] <= text_limit(model))
    batches = {"x".join(map(str, shape)): random_inputs(model, shape) for shape in shapes}
    if not batches:
        raise ValueError("shapes is empty; give at least one")
    torch.set_num_threads(threads)
    try:
        with tempfile.TemporaryDirectory(prefix="zsaq-") as work, told(Path(work)):
            subject = Bench(model, floats_of(model), folder, Path(work), threads)
            subject.twin.save_pretrained(subject.work / "floats")
            timed = [(runtime.name, partial(runtime.time, subject)) for runtime in RUNTIMES if runtime.time is not None]
            runs, rows, left_out = made_ready(timed, batches)
            time_runs(runs, rows, batches, repeats)
    finally:
        torch.set_num_threads(before)
    for row in rows.values():
        row["faster"] = {s: rows[BASE]["ms"][s]["best"] / t["best"] for s, t in row["ms"].items()}
        row["smaller"] = rows[BASE]["bytes"] / row["bytes"]
    table = {
        "machine": machine(),
        "threads": threads,
        "processors": os.cpu_count(),
        "repeats": repeats,
        "memory": MEMORY,
        "rows": list(rows.values()),
        "left_out": left_out,
        "slower": slower_at(rows),
    }
    if write:
        write_added(folder / BENCH, table, fingerprint(folder))
    return table


def made_ready(
    makers: Iterable[tuple[str, Callable[[], tuple[Run, int]]]], batches: dict[str, Inputs]
) -> tuple[dict[str, Run], dict[str, dict[str, Any]], dict[str, str]]:
    """Runtimes that have run every batch once, their rows, and why others are left out."""
    runs: dict[str, Run] = {}
    rows: dict[str, dict[str, Any]] = {}
    left_out: dict[str, str] = {}
    for name, make in makers:
        gc.collect()
        memory = resident()
        try:
            with told(Path(tempfile.gettempdir()) / "zsaq"):
                run, size = make()
            for inputs in batches.values():
                run(inputs)
        except (ImportError, ValueError, RuntimeError, NotImplementedError, AttributeError, OSError) as error:
            if name == BASE:
                raise
            left_out[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
            continue
        gc.collect()
        runs[name] = run
        rows[name] = {"runtime": name, "bytes": size, "memory": max(0, resident() - memory), "ms": {}}
    return runs, rows, left_out


def time_runs(runs: dict[str, Run], rows: dict[str, dict[str, Any]], batches: dict[str, Inputs], repeats: int) -> None:
    """Times into the rows. All take turns in each round; the first round of each shape is not counted."""
    for shape, inputs in batches.items():
        times: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(repeats + 1):
            for name, run in runs.items():
                begin = time.perf_counter()
                run(inputs)
                if turn:
                    times[name].append((time.perf_counter() - begin) * 1e3)
        for name, taken in times.items():
            rows[name]["ms"][shape] = {"best": min(taken), "median": float(np.median(taken))}


def slower_at(rows: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """By shape, the runtimes whose best time is below that of our export; nothing without one."""
    ours = rows[OURS]["ms"] if OURS in rows else {}
    quicker = {s: [n for n, row in rows.items() if row["ms"][s]["best"] < ours[s]["best"]] for s in ours}
    return {shape: names for shape, names in quicker.items() if names}
