"""What each runtime is checked by: how it computes on given inputs, beside the student's plain rule.

Each check takes the student, the folder that it was loaded from, and batches; it answers the facts of `Differences`.
"""

import copy
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from zsaq.deploy.comparison import Differences, apart, apply_plainly, difference, norms_of, see
from zsaq.deploy.onnx.blocks import block_of
from zsaq.deploy.onnx.captures import Captures
from zsaq.deploy.onnx.write import BLOCKS, MODEL
from zsaq.deploy.openvino.session import Session as OpenVinoSession
from zsaq.io.added import read_export
from zsaq.io.loading import load
from zsaq.quant.config import Grid
from zsaq.quant.packed import PackedConv2d, PackedEmbedding, PackedLayer, packed_layers
from zsaq.quant.plan import plan_of
from zsaq.quant.quantizer import Quantizer
from zsaq.quant.ranges import MinMax

SHIFTED: Final = 2.0**-15  # relative distance from a tie that a shift by half of 256 codes can take


def verify_loaded(model: PreTrainedModel, folder: Path, batches: list[dict[str, Tensor]]) -> dict[str, Any]:
    """The student that `zsaq.load` gives, and a second load against the first, bit for bit."""
    again = load(folder, dtype=torch.float32)
    differences, same = Differences(model), True
    for inputs in batches:
        answers, seen = see(model, differences.packed, inputs)
        differences.add(inputs, answers, seen)
        anew = see(again, (), inputs)[0]
        same &= answers.keys() == anew.keys() and all(torch.equal(answers[name], anew[name]) for name in anew)
    facts = differences.facts()
    return facts | {"agrees": facts["agrees"] and same, "bit_equal_when_loaded_again": same}


def read_layers(place: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Convolutions, and layers of the second rule, of the ONNX export in `place`. Raises ValueError for others."""
    facts = read_export(place)
    convolutions, blocks = facts.get("convolutions"), facts.get("blocks", {})
    if not isinstance(convolutions, dict) or not isinstance(blocks, dict):
        raise ValueError(f"{place.name} does not tell of the graph's layers: export the student again")
    return convolutions, blocks


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.tensor(array) for name, array in arrays.items()}


def verify_onnx(
    model: PreTrainedModel, folder: Path, batches: list[dict[str, Tensor]], graph: str = MODEL
) -> dict[str, Any]:
    """The graph in ONNX Runtime; token tables whole, since inputs reach only some of their rows.

    Raises ValueError for a graph that does not run or is of another student, OSError for one that is not there.
    """
    place = folder / "onnx"
    differences = Differences(model, norms=norms_of(model, batches[0]))
    others = {name: layer for name, layer in differences.packed.items() if not isinstance(layer, PackedConv2d)}
    captures = Captures(place / graph, others, plan_of(model).tied, read_layers(place)[0])
    for inputs in batches:
        deployed, answers, arrays = captures.run({name: value.numpy() for name, value in inputs.items()})
        seen = {name: [(torch.tensor(x), torch.tensor(y))] for name, (x, y) in arrays.items()}
        differences.add(inputs, tensors(answers), seen, tensors(deployed))
    for name in captures.places:
        if isinstance(layer := differences.packed[name], PackedEmbedding):
            rows, _ = apply_plainly(layer, torch.arange(layer.num_embeddings))
            got = torch.tensor(captures.rows(name, len(rows)))
            differences.alone[name] = max(differences.alone.get(name, 0.0), difference(got, rows))
    return differences.facts()


def verify_blocks(model: PreTrainedModel, folder: Path, batches: list[dict[str, Tensor]]) -> dict[str, Any]:
    """The second graph, by its own rule: a student that rounds the inputs of those layers once a block."""
    other, named = copy.deepcopy(model), read_layers(folder / "onnx")[1]
    layers: dict[str, PackedLayer] = dict(packed_layers(other))
    if unknown := named.keys() - layers.keys():
        raise ValueError(f"the export names {sorted(unknown)[:3]}, which are no packed layers: export again")
    for name in named:
        layer = layers[name]
        owner = layer if layer.table is None else layer.table
        block = block_of(layer.shape[1], owner.scale.flatten(1).shape[1])
        layer.input_quantizer = Quantizer(Grid(8, per=block), MinMax())
    far = 0.0
    for inputs in batches:
        far = max(far, apart(see(other, (), inputs)[0], see(model, (), inputs)[0]))
    return verify_onnx(other, folder, batches, BLOCKS) | {
        "rule": "inputs rounded once a block, not once a token",
        "student_by_this_rule": far,
    }


def verify_openvino(model: PreTrainedModel, folder: Path, batches: list[dict[str, Tensor]]) -> dict[str, Any]:
    """The model in OpenVINO; token tables whole. It multiplies inputs by 1 / scale and shifts them by 128 before it
    rounds, so that ties reach further there (`SHIFTED`)."""
    place = folder / "openvino"
    places = openvino_places(place)
    differences = Differences(model, near=SHIFTED)
    if unknown := places.keys() - differences.packed.keys():
        raise ValueError(f"the export names {sorted(unknown)[:3]}, which are no packed layers: export again")
    watched = tuple(sorted({name for ends in places.values() for name in ends}))
    deployed, watching = OpenVinoSession(place), OpenVinoSession(place, watched)
    for inputs in batches:
        arrays = {name: value.numpy() for name, value in inputs.items()}
        values = arrays | watching.run(arrays)
        seen = {
            name: [(torch.tensor(values[start]), torch.tensor(values[end]))] for name, (start, end) in places.items()
        }
        answers = {name: values[name] for name in deployed.answers}
        differences.add(inputs, tensors(answers), seen, tensors(deployed.run(arrays)))
    for name, (start, end) in places.items():
        if isinstance(layer := differences.packed[name], PackedEmbedding):
            rows, _ = apply_plainly(layer, torch.arange(layer.num_embeddings))
            got = torch.tensor(watching.rows(start, end, len(rows)))
            differences.alone[name] = max(differences.alone.get(name, 0.0), difference(got, rows))
    return differences.facts()


def openvino_places(place: Path) -> dict[str, tuple[str, str]]:
    """Where each layer of the OpenVINO export in `place` begins and ends. Raises ValueError for others."""
    layers = read_export(place).get("layers")
    if not isinstance(layers, dict):
        raise ValueError(f"{place.name} does not tell of the model's layers: export the student again")
    places = {}
    for name, ends in layers.items():
        if not isinstance(ends, dict) or not all(isinstance(ends.get(end), str) for end in ("input", "output")):
            raise ValueError(f"{place.name} does not tell where {name} stands: export the student again")
        places[name] = (ends["input"], ends["output"])
    return places


def verify_compressed(model: PreTrainedModel, folder: Path, batches: list[dict[str, Tensor]]) -> dict[str, Any]:
    """The twin in stock transformers, by its own rule for dynamic symmetric inputs; token tables whole."""
    place = folder / "compressed-tensors"
    read_export(place)
    options: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True, "trust_remote_code": False}
    other = type(model).from_pretrained(place, **options).eval()
    quantizers = [layer.input_quantizer for _, layer in packed_layers(model)]
    stretched = any(q is not None and q.grid.symmetric and not q.ranges.static for q in quantizers)
    differences = Differences(model, stretched)
    for inputs in batches:
        differences.add(inputs, *see(other, differences.packed, inputs))
    for name, layer in differences.packed.items():
        if isinstance(layer, PackedEmbedding):
            got = other.get_submodule(name).get_parameter("weight").detach()
            differences.alone[name] = max(
                differences.alone.get(name, 0.0), difference(got, apply_plainly(layer, torch.arange(len(got)))[0])
            )
    rule = "absmax / ((2^bits - 1) / 2) there, absmax / (2^(bits - 1) - 1) here" if stretched else "the same"
    return differences.facts() | {"scale_of_inputs": rule}
