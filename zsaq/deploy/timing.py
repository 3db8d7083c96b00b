"""How each runtime is made ready to be timed: what runs a batch, and its bytes on disk.

The floats that others start from are the student's own dequantized weights, so all compute about the same model; their
heads stay in floats, as users of them leave them.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, final

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from zsaq.deploy.onnx.session import Session
from zsaq.deploy.onnx.weights import Weights
from zsaq.deploy.onnx.write import BLOCKS, MODEL, WEIGHTS, write_graph
from zsaq.deploy.openvino.session import Session as OpenVinoSession
from zsaq.io.added import sealed_export
from zsaq.io.loading import load
from zsaq.quant.heads import heads
from zsaq.quant.kinds import ExpertLinear, kind_of
from zsaq.quant.layers import Conv1D
from zsaq.quant.packed import packed_layers

OURS: Final = "zsaq onnx"
BASE: Final = "torch fp32"

Inputs = dict[str, Tensor]
Run = Callable[[Inputs], Any]


class Timed(NamedTuple):
    """What is timed: what runs a batch, or writes text (`zsaq.deploy.generation.Write`); bytes on disk; and the linear
    layers that a peer leaves in floats, by name."""

    run: Callable[..., Any]
    bytes: int
    in_floats: tuple[str, ...] = ()


class Made(NamedTuple):
    """A model in torch, its bytes on disk, and `in_floats` as in `Timed`."""

    model: PreTrainedModel
    bytes: int
    in_floats: tuple[str, ...] = ()


def floats_of(model: PreTrainedModel) -> PreTrainedModel:
    """The same architecture in floats, with the dequantized weights of a loaded student; inputs are not rounded."""
    config = copy.deepcopy(model.config)
    config.__dict__.pop("quantization_config", None)
    twin = type(model)(config).eval()
    state = model.state_dict() | {f"{name}.weight": layer.weight for name, layer in packed_layers(model)}
    state |= {name: layer.weight for name, layer in model.named_modules() if isinstance(layer, ExpertLinear)}
    twin.load_state_dict({name: state[name] for name in twin.state_dict()})
    vars(twin)["zsaq"] = vars(model).get("zsaq")  # whose processor tells the size of images
    return twin


def linear_heads(model: PreTrainedModel) -> tuple[str, ...]:
    """Names of the linear layers in the model's heads."""
    ends = heads(model)
    return tuple(n for n, m in model.named_modules() if m in ends and kind_of(m) in (nn.Linear, Conv1D))


def torch_run(model: PreTrainedModel) -> Run:
    dtype = model.dtype

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


@final
@dataclass(frozen=True)
class Bench:
    """What is timed: the student's `twin` in floats, the folder of the student, one for what is made on the way, which
    holds `floats`, how many threads, and the height and width of images where they are given."""

    twin: PreTrainedModel
    folder: Path
    work: Path
    threads: int
    size: tuple[int, int] | None = None


def in_torch(make: Callable[[Bench], Made]) -> Callable[[Bench], Timed]:
    """A row's `time`, of what makes a model in torch."""

    def time(bench: Bench) -> Timed:
        model, size, in_floats = make(bench)
        return Timed(torch_run(model), size, in_floats)

    return time


def floats(bench: Bench) -> Made:
    model = type(bench.twin).from_pretrained(bench.work / "floats", dtype=torch.float32).eval()
    return Made(model, size_of(bench.work / "floats", ".safetensors"))


def bf16(bench: Bench) -> Made:
    other = copy.deepcopy(bench.twin).bfloat16()
    other.save_pretrained(bench.work / "bf16")
    return Made(other, size_of(bench.work / "bf16", ".safetensors"))


def int8(bench: Bench) -> Made:
    from torchao.quantization import (  # pyright: ignore[reportMissingImports]
        Int8DynamicActivationInt8WeightConfig,
        quantize_,
    )

    other, in_floats = copy.deepcopy(bench.twin), linear_heads(bench.twin)
    quantized = {n: m for n, m in other.named_modules() if isinstance(m, nn.Linear) and n not in in_floats}
    quantize_(other, Int8DynamicActivationInt8WeightConfig(), lambda _, name: name in quantized)
    sizes = {id(p): 4 * p.numel() for p in other.parameters()}
    for layer in quantized.values():
        sizes[id(layer.weight)] = layer.weight.numel() + 4 * layer.out_features
    return Made(other, sum(sizes.values()), in_floats)


def nf4(bench: Bench) -> Made:
    import bitsandbytes  # pyright: ignore[reportMissingImports]

    skipped = list(linear_heads(bench.twin))
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=skipped)
    options: dict[str, Any] = {"dtype": torch.float32, "quantization_config": config}
    other = type(bench.twin).from_pretrained(bench.work / "floats", **options).eval()
    other.save_pretrained(bench.work / "nf4")
    layers = [(n, m) for n, m in other.named_modules() if isinstance(m, nn.Linear | Conv1D)]
    in_floats = tuple(name for name, layer in layers if not isinstance(layer, bitsandbytes.nn.Linear4bit))
    return Made(other, size_of(bench.work / "nf4", ".safetensors"), in_floats)


def packed(bench: Bench) -> Made:
    return Made(load(bench.folder, dtype=torch.float32), size_of(bench.folder, ".safetensors"))


def fp32_onnx(bench: Bench) -> Timed:
    place = bench.work / "fp32"
    place.mkdir()
    write_graph(copy.deepcopy(bench.twin), place, Weights(place / WEIGHTS), optimize=True, size=bench.size)
    return Timed(onnx_run(place / MODEL, bench.threads), size_of(place, MODEL, WEIGHTS))


def dynamic_onnx(bench: Bench) -> Timed:
    """Of the graph in floats, which has to be made before."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    place = bench.work / "dynamic"
    place.mkdir()
    quantize_dynamic(
        bench.work / "fp32" / MODEL,
        place / MODEL,
        weight_type=QuantType.QInt8,
        per_channel=True,
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},  # its shape inference stops at attention
    )
    return Timed(onnx_run(place / MODEL, bench.threads), size_of(place, MODEL, ".data"))


def exported(bench: Bench) -> Timed:
    """Raises ValueError where there is no export, or one of another student."""
    place = bench.folder / "onnx"
    if not (place / MODEL).is_file():
        raise ValueError(f"there is no export: zsaq export {bench.folder} --to onnx")
    sealed_export(place)
    return Timed(onnx_run(place / MODEL, bench.threads), size_of(place, MODEL, WEIGHTS))


def openvino(bench: Bench) -> Timed:
    """Raises ValueError where there is no export, or one of another student."""
    place = bench.folder / "openvino"
    if not place.is_dir():
        raise ValueError(f"there is no export: zsaq export {bench.folder} --to openvino")
    sealed_export(place)
    session = OpenVinoSession(place, threads=bench.threads)
    return Timed(
        lambda inputs: session.run({name: value.numpy() for name, value in inputs.items()}),
        size_of(place, ".xml", ".bin"),
    )


def blocks_onnx(bench: Bench) -> Timed:
    """Raises ValueError where the export has no second graph, or is of another student."""
    place = bench.folder / "onnx"
    if not (place / BLOCKS).is_file():
        raise ValueError("the export has no second graph: only inputs of 8 bits a token have one")
    sealed_export(place)
    return Timed(onnx_run(place / BLOCKS, bench.threads), size_of(place, BLOCKS, WEIGHTS))
