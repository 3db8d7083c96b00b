"""How each runtime is made ready to be timed: what runs a batch, and its bytes on disk.

The floats that others start from are the student's own dequantized weights, so all compute about the same model.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from zsaq.deploy.onnx.session import Session
from zsaq.deploy.onnx.weights import Weights
from zsaq.deploy.onnx.write import BLOCKS, MODEL, WEIGHTS, write_graph
from zsaq.deploy.openvino.session import Session as OpenVinoSession
from zsaq.io.added import sealed_export
from zsaq.quant.packed import packed_layers

OURS: Final = "zsaq onnx"
BASE: Final = "torch fp32"

Inputs = dict[str, Tensor]
Run = Callable[[Inputs], Any]


def floats_of(model: PreTrainedModel) -> PreTrainedModel:
    """The same architecture in floats, with the dequantized weights of a loaded student; inputs are not rounded."""
    config = copy.deepcopy(model.config)
    config.__dict__.pop("quantization_config", None)
    twin = type(model)(config).eval()
    state = model.state_dict() | {f"{name}.weight": layer.weight for name, layer in packed_layers(model)}
    twin.load_state_dict({name: state[name] for name in twin.state_dict()})
    vars(twin)["zsaq"] = vars(model).get("zsaq")  # whose processor tells the size of images
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


@final
@dataclass(frozen=True)
class Bench:
    """What is timed: the loaded student and its `twin` in floats, the folder of the student, one for what is made on
    the way, which holds `floats`, how many threads, and the height and width of images where they are given."""

    model: PreTrainedModel
    twin: PreTrainedModel
    folder: Path
    work: Path
    threads: int
    size: tuple[int, int] | None = None


Timed = tuple[Run, int]


def floats(bench: Bench) -> Timed:
    return torch_run(bench.twin), size_of(bench.work / "floats", ".safetensors")


def bf16(bench: Bench) -> Timed:
    other = copy.deepcopy(bench.twin).bfloat16()
    other.save_pretrained(bench.work / "bf16")
    return torch_run(other, torch.bfloat16), size_of(bench.work / "bf16", ".safetensors")


def int8(bench: Bench) -> Timed:
    from torchao.quantization import (  # pyright: ignore[reportMissingImports]
        Int8DynamicActivationInt8WeightConfig,
        quantize_,
    )

    other = copy.deepcopy(bench.twin)
    quantize_(other, Int8DynamicActivationInt8WeightConfig())
    sizes = {id(p): 4 * p.numel() for p in other.parameters()}
    for layer in other.modules():
        if isinstance(layer, nn.Linear):
            sizes[id(layer.weight)] = layer.weight.numel() + 4 * layer.out_features
    return torch_run(other), sum(sizes.values())


def nf4(bench: Bench) -> Timed:
    import bitsandbytes  # noqa: F401  # pyright: ignore[reportMissingImports]

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    other = type(bench.twin).from_pretrained(bench.work / "floats", quantization_config=config).eval()
    other.save_pretrained(bench.work / "nf4")
    return torch_run(other), size_of(bench.work / "nf4", ".safetensors")


def fp32_onnx(bench: Bench) -> Timed:
    place = bench.work / "fp32"
    place.mkdir()
    write_graph(copy.deepcopy(bench.twin), place, Weights(place / WEIGHTS), optimize=True, size=bench.size)
    return onnx_run(place / MODEL, bench.threads), size_of(place, MODEL, WEIGHTS)


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
    return onnx_run(place / MODEL, bench.threads), size_of(place, MODEL, ".data")


def packed(bench: Bench) -> Timed:
    return torch_run(bench.model), size_of(bench.folder, ".safetensors")


def exported(bench: Bench) -> Timed:
    """Raises ValueError where there is no export, or one of another student."""
    place = bench.folder / "onnx"
    if not (place / MODEL).is_file():
        raise ValueError(f"there is no export: zsaq export {bench.folder} --to onnx")
    sealed_export(place)
    return onnx_run(place / MODEL, bench.threads), size_of(place, MODEL, WEIGHTS)


def openvino(bench: Bench) -> Timed:
    """Raises ValueError where there is no export, or one of another student."""
    place = bench.folder / "openvino"
    if not place.is_dir():
        raise ValueError(f"there is no export: zsaq export {bench.folder} --to openvino")
    sealed_export(place)
    session = OpenVinoSession(place, threads=bench.threads)
    return (
        lambda inputs: session.run({name: value.numpy() for name, value in inputs.items()}),
        size_of(place, ".xml", ".bin"),
    )


def blocks_onnx(bench: Bench) -> Timed:
    """Raises ValueError where the export has no second graph, or is of another student."""
    place = bench.folder / "onnx"
    if not (place / BLOCKS).is_file():
        raise ValueError("the export has no second graph: only inputs of 8 bits a token have one")
    sealed_export(place)
    return onnx_run(place / BLOCKS, bench.threads), size_of(place, BLOCKS, WEIGHTS)
