"""A saved student as an ONNX graph for ONNX Runtime: the same integer codes, the same rule, another runtime.

Inputs keep a dynamic batch, and text a dynamic length. Attention becomes one fused operator. What the student left in
floats stays so.
"""

import warnings
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from zsaq.deploy.onnx.attention import Attention
from zsaq.deploy.onnx.blocks import has_blocks
from zsaq.deploy.onnx.convolution import to_activation, to_convolution
from zsaq.deploy.onnx.lowering import lower
from zsaq.deploy.onnx.operators import to_operators
from zsaq.deploy.onnx.weights import Weights
from zsaq.io.inputs import random_inputs, text_limit
from zsaq.io.loading import load
from zsaq.quant.packed import PackedConv2d, PackedLayer, quantized

OPSET: Final = 20
MODEL, BLOCKS, WEIGHTS = "model.onnx", "blocks.onnx", "model.onnx.data"


class Logits(nn.Module):
    """Tensors in the order of `names` to logits."""

    def __init__(self, model: PreTrainedModel, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model(**dict(zip(self.names, inputs, strict=True))).logits


def example(model: PreTrainedModel) -> tuple[dict[str, Tensor], dict[str, dict[int, Any]]]:
    """Inputs to trace with, and which of their dimensions vary. Raises ValueError for a model of neither kind."""
    batch = torch.export.Dim("batch", min=1, max=4096)
    if model.main_input_name == "pixel_values":
        return random_inputs(model, (2,)), {"pixel_values": {0: batch}}
    most = text_limit(model)
    inputs = random_inputs(model, (2, min(8, most)))
    length = torch.export.Dim("length", min=1, max=max(2, most))
    return inputs, {name: {0: batch, 1: length} for name in inputs}


def trace(model: PreTrainedModel, optimize: bool = False) -> tuple[Any, dict[str, Tensor]]:
    """The graph (onnx.ModelProto) of a model whose packed layers are operators, and the inputs it was traced with.

    `optimize`: fold what is constant, for floats; it would widen the codes of small layers in the file.
    """
    attention = Attention(model)
    model.config.use_cache = False
    inputs, varying = example(model)
    attention.choose(model, inputs)
    names = list(inputs)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's own
        program = torch.onnx.export(
            Logits(model, names).eval(), tuple(inputs.values()), dynamo=True, opset_version=OPSET, optimize=optimize,
            input_names=names, output_names=["logits"], dynamic_shapes=(tuple(varying.values()),), verbose=False,
        )  # fmt: skip
    assert program is not None
    return program.model_proto, inputs


def slim(proto: Any) -> None:
    """Take out what no runtime reads: where each node came from, and second copies of equal tensors."""
    graph = proto.graph
    for node in (*graph.node, *(n for f in proto.functions for n in f.node)):
        del node.metadata_props[:]
        node.doc_string = ""
    del graph.metadata_props[:], graph.value_info[:]
    first: dict[tuple, str] = {}
    renamed: dict[str, str] = {}
    kept = []
    for tensor in graph.initializer:
        key = (tensor.data_type, tuple(tensor.dims), tensor.raw_data)
        if tensor.raw_data and key in first:
            renamed[tensor.name] = first[key]
        else:
            first[key] = tensor.name
            kept.append(tensor)
    kept = [type(t).FromString(t.SerializeToString()) for t in kept]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)


def write_graph(
    model: PreTrainedModel, target: Path, weights: Weights, name: str = MODEL, optimize: bool = False
) -> tuple[dict[str, Tensor], dict[str, dict[str, str]]]:
    """Trace a model, of operators or of floats, into a graph in the folder `target`, its tensors into `weights`.

    `optimize` as in `trace`. Returns the inputs it was traced with, and what `lower` tells. The model is changed: its
    attention becomes an operator.
    """
    import onnx

    proto, inputs = trace(model, optimize)
    convolutions = lower(proto)
    slim(proto)
    weights.attach(proto)
    onnx.save(proto, str(target / name))
    return inputs, convolutions


def to_operator_model(source: str | Path, blocks: bool = False) -> tuple[PreTrainedModel, dict[str, str]]:
    """The saved student with operators for layers, and their names; `blocks` as in `to_operators`, where it can be.

    Raises ValueError, with the layer's name, for a rule that no kernel of ONNX Runtime has, and as `zsaq.load` does.
    """
    model = load(source)
    operators: dict[str, str] = {}
    for name, layer in list(quantized(model)):
        try:
            if isinstance(layer, PackedConv2d):
                to_convolution(layer)
            elif isinstance(layer, PackedLayer):
                to_operators(layer, blocks and has_blocks(layer))
            else:
                to_activation(layer)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        operators[name] = type(layer).__name__
    return model, operators


def to_onnx(source: str | Path, target: Path) -> dict[str, Any]:
    """Write model.onnx and model.onnx.data into the new folder `target`; returns facts about them.

    Text whose inputs are rounded once a token gets a second graph on the same codes, blocks.onnx, which rounds them
    once a block: another rule, finer, and faster for few tokens. Raises as `to_operator_model` does.
    """
    import onnx

    model, operators = to_operator_model(source)
    target.mkdir(parents=True)
    weights = Weights(target / WEIGHTS)
    inputs, convolutions = write_graph(model, target, weights)
    facts: dict[str, Any] = {
        "inputs": {name: str(value.dtype).removeprefix("torch.") for name, value in inputs.items()},
        "layers": operators,
        "convolutions": convolutions,
    }
    if "input_ids" in inputs and "Int8Linear" in operators.values():
        model, others = to_operator_model(source, blocks=True)
        if others != operators:
            write_graph(model, target, weights, BLOCKS)
            facts["tokens"] = text_limit(model)
            facts["blocks"] = {name: kind for name, kind in others.items() if kind != operators[name]}
    facts["bytes"] = {path.name: path.stat().st_size for path in sorted(target.iterdir())}
    facts["versions"] = {"torch": torch.__version__, "transformers": transformers.__version__, "onnx": onnx.__version__}
    return facts
