"""How fast and how large, on this machine, in one run: the runtimes take turns, so that all see the same load.

The floats that others start from are the student's own dequantized weights, so all compute about the same model.
"""

import copy
import gc
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from zsaq.deploy.inputs import random_inputs, text_limit
from zsaq.deploy.onnx.session import Session
from zsaq.deploy.onnx.weights import Weights
from zsaq.deploy.onnx.write import BLOCKS, MODEL, WEIGHTS, write_graph
from zsaq.deploy.parity import machine
from zsaq.io.loading import load
from zsaq.quant.packed import packed_layers

TEXT_SHAPES: Final = ((1, 2), (1, 16), (1, 128), (16, 128))  # batch, tokens
IMAGE_SHAPES: Final = ((1,), (16,))  # batch
OURS: Final = "zsaq onnx"
BASE: Final = "torch fp32"
MEMORY: Final = "growth of this process while a runtime was made and first run, one after the other: a rough figure"

Inputs = dict[str, Tensor]
Run = Callable[[Inputs], Any]


def floats_of(model: PreTrainedModel) -> PreTrainedModel:
    """The same architecture in floats, with the dequantized weights of a loaded student; inputs are not rounded."""
    config = copy.deepcopy(model.config)
    config.__dict__.pop("quantization_config", None)
    twin = type(model)(config).eval()
    state = model.state_dict() | {f"{name}.weight": layer.weight for name, layer in packed_layers(model)}
    twin.load_state_dict({name: state[name] for name in twin.state_dict()})
    return twin


def torch_run(model: nn.Module, dtype: torch.dtype = torch.float32) -> Run:
    def run(inputs: Inputs) -> Any:
        with torch.inference_mode():
            return model(**{k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()})[0]

    return run


def onnx_run(file: Path, threads: int) -> Run:
    session = Session(file, threads=threads)
    return lambda inputs: session.run({name: value.numpy() for name, value in inputs.items()})[0]


def size_of(folder: Path, *suffixes: str) -> int:
    """Bytes of the files in a folder, not below it, that end so."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.name.endswith(suffixes))


def runtimes(
    model: PreTrainedModel, folder: Path, work: Path, threads: int
) -> Iterator[tuple[str, Callable[[], tuple[Run, int]]]]:
    """Names, and what makes each runtime: its run and its bytes on disk. What cannot be made raises when called."""
    twin = floats_of(model)
    twin.save_pretrained(work / "floats")

    def bf16() -> tuple[Run, int]:
        other = copy.deepcopy(twin).bfloat16()
        other.save_pretrained(work / "bf16")
        return torch_run(other, torch.bfloat16), size_of(work / "bf16", ".safetensors")

    def int8() -> tuple[Run, int]:
        from torchao.quantization import (  # pyright: ignore[reportMissingImports]
            Int8DynamicActivationInt8WeightConfig,
            quantize_,
        )

        other = copy.deepcopy(twin)
        quantize_(other, Int8DynamicActivationInt8WeightConfig())
        sizes = {id(p): 4 * p.numel() for p in other.parameters()}
        for layer in other.modules():
            if isinstance(layer, nn.Linear):
                sizes[id(layer.weight)] = layer.weight.numel() + 4 * layer.out_features
        return torch_run(other), sum(sizes.values())

    def nf4() -> tuple[Run, int]:
        import bitsandbytes  # noqa: F401  # pyright: ignore[reportMissingImports]

        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
        other = type(twin).from_pretrained(work / "floats", quantization_config=config).eval()
        other.save_pretrained(work / "nf4")
        return torch_run(other), size_of(work / "nf4", ".safetensors")

    def fp32_onnx() -> tuple[Run, int]:
        (work / "fp32").mkdir()
        write_graph(copy.deepcopy(twin), work / "fp32", Weights(work / "fp32" / WEIGHTS), optimize=True)
        return onnx_run(work / "fp32" / MODEL, threads), size_of(work / "fp32", MODEL, WEIGHTS)

    def dynamic_onnx() -> tuple[Run, int]:
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic

        (work / "dynamic").mkdir()
        quantize_dynamic(
            work / "fp32" / MODEL,
            work / "dynamic" / MODEL,
            weight_type=QuantType.QInt8,
            per_channel=True,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},  # its shape inference stops at attention
        )
        return onnx_run(work / "dynamic" / MODEL, threads), size_of(work / "dynamic", MODEL, ".data")

    def ours() -> tuple[Run, int]:
        if not (folder / "onnx" / MODEL).is_file():
            raise ValueError(f"there is no export: zsaq export {folder} --to onnx")
        return onnx_run(folder / "onnx" / MODEL, threads), size_of(folder / "onnx", MODEL, WEIGHTS)

    def in_blocks() -> tuple[Run, int]:
        if not (folder / "onnx" / BLOCKS).is_file():
            raise ValueError("the export has no second graph: only inputs of 8 bits a token have one")
        return onnx_run(folder / "onnx" / BLOCKS, threads), size_of(folder / "onnx", BLOCKS, WEIGHTS)

    yield BASE, lambda: (torch_run(twin), size_of(work / "floats", ".safetensors"))
    yield "torch bf16", bf16
    yield "onnxruntime fp32", fp32_onnx
    yield "onnxruntime dynamic int8", dynamic_onnx
    yield "torchao int8", int8
    yield "bitsandbytes nf4", nf4
    yield "zsaq torch", lambda: (torch_run(model), size_of(folder, ".safetensors"))
    yield OURS, ours
    yield "zsaq onnx, in blocks", in_blocks


def resident() -> int:
    """Bytes of this process that lie in memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the kernel tells no VmRSS")


def bench(
    folder: str | Path, shapes: tuple[tuple[int, ...], ...] | None = None, repeats: int = 10, threads: int | None = None
) -> dict[str, Any]:
    """Latency in milliseconds (best and median), bytes on disk and memory of each runtime, interleaved.

    `shapes`: (batch, tokens) for text, (batch,) for images. `threads`: as torch has them, for all runtimes. A runtime
    that is not installed, or that fails on this model, is told in `left_out` with its reason. `slower` names, by shape,
    the runtimes that are faster than our export. Raises ValueError as `zsaq.load` does, for fewer than one repeat or
    thread, and for shapes that the model does not take.
    """
    folder = Path(folder)
    before = torch.get_num_threads()
    threads = before if threads is None else threads
    if min(repeats, threads) < 1:
        raise ValueError(f"repeats is {repeats} and threads {threads}; give at least 1")
    model = load(folder, dtype=torch.float32)
    image = model.main_input_name == "pixel_values"
    if shapes is None:
        shapes = IMAGE_SHAPES if image else tuple(s for s in TEXT_SHAPES if s[1] <= text_limit(model))
    batches = {"x".join(map(str, shape)): random_inputs(model, shape) for shape in shapes}
    if not batches:
        raise ValueError("shapes is empty; give at least one")
    torch.set_num_threads(threads)
    try:
        with tempfile.TemporaryDirectory() as work:
            runs, rows, left = made_ready(runtimes(model, folder, Path(work), threads), batches)
            measure(runs, rows, batches, repeats)
    finally:
        torch.set_num_threads(before)
    for row in rows.values():
        row["faster"] = {s: rows[BASE]["ms"][s]["best"] / t["best"] for s, t in row["ms"].items()}
        row["smaller"] = rows[BASE]["bytes"] / row["bytes"]
    return {
        "machine": machine(),
        "threads": threads,
        "processors": os.cpu_count(),
        "repeats": repeats,
        "memory": MEMORY,
        "rows": list(rows.values()),
        "left_out": left,
        "slower": slower_at(rows),
    }


def made_ready(
    makers: Iterable[tuple[str, Callable[[], tuple[Run, int]]]], batches: dict[str, Inputs]
) -> tuple[dict[str, Run], dict[str, dict[str, Any]], dict[str, str]]:
    """Runtimes that have run every batch once, their rows, and why others are left out."""
    runs: dict[str, Run] = {}
    rows: dict[str, dict[str, Any]] = {}
    left: dict[str, str] = {}
    for name, make in makers:
        gc.collect()
        memory = resident()
        try:
            run, size = make()
            for inputs in batches.values():
                run(inputs)
        except (ImportError, ValueError, RuntimeError, NotImplementedError, AttributeError, OSError) as error:
            if name == BASE:
                raise
            left[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
            continue
        gc.collect()
        runs[name] = run
        rows[name] = {"runtime": name, "bytes": size, "memory": max(0, resident() - memory), "ms": {}}
    return runs, rows, left


def measure(runs: dict[str, Run], rows: dict[str, dict[str, Any]], batches: dict[str, Inputs], repeats: int) -> None:
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
