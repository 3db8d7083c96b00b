"""A saved student as an OpenVINO model: the same codes as int8 constants, inputs in the same static ranges.

The model comes from the trace that ONNX Runtime's comes from, in standard operators. Inputs keep a dynamic batch and a
dynamic length.
"""

import tempfile
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from transformers import PreTrainedModel

from zsaq.deploy.foreign import in_one_line
from zsaq.deploy.onnx.tidy import tidy
from zsaq.deploy.onnx.tracing import trace
from zsaq.deploy.onnx.write import slim
from zsaq.deploy.openvino.operators import to_operators
from zsaq.deploy.openvino.session import MODEL, Session
from zsaq.io.loading import load
from zsaq.quant.packed import quantized

LAYER, VALUES = "model.", ".values"  # about the names of layers in a trace
ONNX: Final = "export --to onnx, or run it in torch: zsaq.load(DIR)"


def to_operator_model(source: str | Path) -> PreTrainedModel:
    """The saved student with operators for layers. Raises ValueError, with the layer's name, for a rule that OpenVINO
    has no form for, and as `zsaq.load` does."""
    model = load(source, dtype=torch.float32)
    for name, layer in list(quantized(model)):
        try:
            to_operators(layer)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return model


def places_of(graph: Any) -> dict[str, dict[str, str]]:
    """For each layer of a traced graph the tensors that go in and come out, as `zsaq.deploy.openvino.operators` writes
    them; OpenVINO keeps their names."""
    makers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    places = {}
    for node in graph.node:
        if node.op_type not in ("Gather", "DequantizeLinear") or not node.input[0].endswith(VALUES):
            continue
        layer = node.input[0].removesuffix(VALUES)
        last = readers[readers[node.output[0]][0].output[0]][0]  # two nodes on: the rows' scales, or the product
        start = node.input[1]
        if node.op_type == "DequantizeLinear":
            codes = makers[last.input[0]].input[0]
            start = makers[codes].input[0]
            if start in makers and f"{layer}.least" in makers[start].input:
                start = makers[start].input[0]
            added = [each for each in readers.get(last.output[0], []) if f"{layer}.bias" in each.input]
            last = added[0] if added else last
        places[layer.removeprefix(LAYER)] = {"input": start, "output": last.output[0]}
    return places


def to_openvino(source: str | Path, target: Path) -> dict[str, Any]:
    """Write openvino_model.xml and .bin into the new folder `target`; returns facts about them.

    Raises ValueError as `to_operator_model` and `trace` do, and for a model that OpenVINO does not read or run.
    """
    import onnx
    import openvino

    model = to_operator_model(source)
    proto, inputs = trace(model, fusing=False)
    with in_one_line(model, "is written as a graph that OpenVINO does not run", ONNX):
        tidy(proto)
        places = places_of(proto.graph)
        slim(proto)
        target.mkdir(parents=True)
        with tempfile.TemporaryDirectory(dir=target) as work:
            file = str(Path(work) / "model.onnx")
            onnx.save_model(proto, file, save_as_external_data=True, location="model.onnx.data")
            read = openvino.Core().read_model(file)
            openvino.save_model(read, target / MODEL, compress_to_fp16=False)
            del read
        session = Session(target)
        for less in (0, 1):
            session.run({key: value[less:, less:].numpy() for key, value in inputs.items()})
    return {
        "inputs": {name: str(value.dtype).removeprefix("torch.") for name, value in inputs.items()},
        "layers": places,
        "bytes": {path.name: path.stat().st_size for path in sorted(target.iterdir())},
        "versions": {
            "torch": torch.__version__, "transformers": transformers.__version__, "openvino": openvino.__version__,
        },
    }  # fmt: skip
