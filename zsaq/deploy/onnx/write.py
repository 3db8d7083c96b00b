"""A saved student as an ONNX graph for ONNX Runtime: the same integer codes, the same rule, another runtime.

Inputs keep a dynamic batch, and text a dynamic length. Attention becomes one fused operator. What the student left in
floats stays so.
"""

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from zsaq.deploy.foreign import in_one_line
from zsaq.deploy.onnx.blocks import has_blocks
from zsaq.deploy.onnx.convolution import to_activation, to_convolution
from zsaq.deploy.onnx.lowering import lower
from zsaq.deploy.onnx.operators import to_operators
from zsaq.deploy.onnx.session import Session
from zsaq.deploy.onnx.tidy import tidy
from zsaq.deploy.onnx.tracing import TORCH, trace
from zsaq.deploy.onnx.weights import BLOCKS, MODEL, WEIGHTS, Weights
from zsaq.io.inputs import text_limit
from zsaq.io.loading import load
from zsaq.quant.attention import QuantAttention, Rounded
from zsaq.quant.heads import token_table
from zsaq.quant.packed import PackedConv2d, PackedLayer, quantized
from zsaq.quant.positions import ends


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
    model: PreTrainedModel, target: Path, weights: Weights, name: str = MODEL, optimize: bool = False,
    size: tuple[int, int] | None = None,
) -> tuple[dict[str, Tensor], dict[str, dict[str, str]]]:  # fmt: skip
    """Trace a model, of operators or of floats, into a graph in the folder `target`, its tensors into `weights`.

    `optimize` and `size` as in `trace`. Returns the inputs it was traced with, and what `lower` tells. The model is
    changed: its attention becomes an operator. Raises ValueError as `trace` does, and for a graph that ONNX Runtime
    does not open, or does not run at the traced and at smaller sizes.
    """
    import onnx

    proto, inputs = trace(model, optimize, size)
    with in_one_line(model, "cannot be written as an ONNX graph", TORCH):
        if not optimize:
            tidy(proto)
        convolutions = lower(proto)
        slim(proto)
        weights.attach(proto)
        onnx.save(proto, str(target / name))
    with in_one_line(model, "is written as a graph that ONNX Runtime does not run", TORCH):
        session = Session(target / name)
        for less in (0, 1):
            parts = {key: value[less:, less:] if value.ndim == 2 else value[less:] for key, value in inputs.items()}
            session.run({key: value.numpy() for key, value in parts.items()})
    return inputs, convolutions


def to_operator_model(source: str | Path, blocks: bool = False) -> tuple[PreTrainedModel, dict[str, str]]:
    """The saved student with operators for layers, and their names; `blocks` as in `to_operators`, where it can be.

    Raises ValueError, with the layer's name, for a rule that no kernel of ONNX Runtime has, and as `zsaq.load` does.
    """
    model = load(source, dtype=torch.float32)
    operators: dict[str, str] = {}
    for name, layer in list(quantized(model)):
        try:
            if isinstance(layer, PackedConv2d):
                to_convolution(layer)
            elif isinstance(layer, PackedLayer):
                to_operators(layer, blocks and has_blocks(layer))
            elif isinstance(layer, QuantAttention):
                for rounding in layer.roundings.values():
                    assert isinstance(rounding, Rounded)
                    to_activation(rounding)
            else:
                to_activation(layer)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        operators[name] = type(layer).__name__
    return model, operators


def counts_of(model: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, int]:
    """How many tokens and token types there are, by the inputs that hold them: ONNX Runtime reads a table of codes
    beyond its ends."""
    table: Any = token_table(model)
    counts = {name: table.num_embeddings for name in inputs if name.endswith("input_ids")}
    return counts | ({"token_type_ids": model.config.type_vocab_size} if "token_type_ids" in inputs else {})


def to_onnx(source: str | Path, target: Path, size: tuple[int, int] | None = None) -> dict[str, Any]:
    """Write model.onnx and model.onnx.data into the new folder `target`; returns facts about them.

    Text whose inputs are rounded once a token gets a second graph on the same codes, blocks.onnx, which rounds them
    once a block: another rule, finer, and faster for few tokens. `size`: height and width of images, which the graph
    then takes alone (see `zsaq.io.inputs.image_shape`). Raises as `to_operator_model` and `write_graph` do.
    """
    import onnx

    model, operators = to_operator_model(source)
    target.mkdir(parents=True)
    weights = Weights(target / WEIGHTS)
    inputs, convolutions = write_graph(model, target, weights, size=size)
    facts: dict[str, Any] = {
        "inputs": {name: str(value.dtype).removeprefix("torch.") for name, value in inputs.items()},
        "shapes": {name: list(value.shape[1:]) for name, value in inputs.items() if value.ndim > 2},
        "layers": operators,
        "convolutions": convolutions,
    }
    if "input_ids" in inputs:
        facts |= {"tokens": text_limit(model), "positions": ends(model, inputs), "below": counts_of(model, inputs)}
        facts["last"] = int(inputs["input_ids"][0, -1])  # by which some models find the end of a text
    if "input_ids" in inputs and "Int8Linear" in operators.values():
        model, others = to_operator_model(source, blocks=True)
        if others != operators:
            write_graph(model, target, weights, BLOCKS)
            facts["blocks"] = {name: kind for name, kind in others.items() if kind != operators[name]}
    facts["bytes"] = {path.name: path.stat().st_size for path in sorted(target.iterdir())}
    facts["versions"] = {"torch": torch.__version__, "transformers": transformers.__version__, "onnx": onnx.__version__}
    return facts
