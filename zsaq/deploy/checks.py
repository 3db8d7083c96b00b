"""What each runtime is checked by: how it computes on given inputs, beside the student's plain rule.

Each check takes the student, the folder that it was loaded from, and batches; it answers the facts of `Differences`.
"""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from zsaq.deploy.comparison import Differences, apart, apply_plainly, difference, hooked, norms_of, see
from zsaq.deploy.gptq.read import Checkpoint
from zsaq.deploy.onnx.blocks import block_of
from zsaq.deploy.onnx.captures import Captures
from zsaq.deploy.onnx.write import BLOCKS, MODEL
from zsaq.deploy.timing import floats_of
from zsaq.io.added import read_export
from zsaq.io.loading import load
from zsaq.quant.config import Grid
from zsaq.quant.packed import PackedConv2d, PackedEmbedding, PackedLayer, packed_layers
from zsaq.quant.plan import plan_of
from zsaq.quant.quantizer import Quantizer
from zsaq.quant.ranges import MinMax, static_ranges


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


def calls_of(model: PreTrainedModel, names: Any, inputs: dict[str, Tensor]) -> list[str]:
    """The named modules in the order in which the model calls them, as often as it does."""
    calls: list[str] = []
    with hooked(model, names, lambda name, *_: calls.append(name)):
        model(**inputs)
    return calls


def verify_onnx(
    model: PreTrainedModel, folder: Path, batches: list[dict[str, Tensor]], graph: str = MODEL
) -> dict[str, Any]:
    """The graph in ONNX Runtime; token tables whole, since inputs reach only some of their rows.

    Raises ValueError for a graph that does not run or is of another student, OSError for one that is not there.
    """
    place = folder / "onnx"
    differences = Differences(model, norms=norms_of(model, batches[0]))
    others = {name: layer for name, layer in differences.packed.items() if not isinstance(layer, PackedConv2d)}
    calls = calls_of(model, others, batches[0])
    convolutions = read_layers(place)[0]
    captures = Captures(place / graph, others, plan_of(model).tied, calls, convolutions)
    for inputs in batches:
        deployed, answers, arrays = captures.run({name: value.numpy() for name, value in inputs.items()})
        seen = {name: [(torch.tensor(x), torch.tensor(y)) for x, y in each] for name, each in arrays.items()}
        differences.add(inputs, tensors(answers), seen, tensors(deployed))
    for name in captures.places:
        if isinstance(layer := differences.packed[name], PackedEmbedding):
            rows, _ = apply_plainly(layer, torch.arange(layer.num_embeddings))
            got = torch.tensor(captures.rows(name, len(rows)))
            differences.alone[name] = max(differences.alone.get(name, 0.0), difference(got, rows))
    gone = differences.packed.keys() - others.keys() - convolutions.keys()  # the export tells of all that it holds
    return differences.facts(captures.absent | gone)


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


def as_stored(
    model: PreTrainedModel, twin: PreTrainedModel, scales: dict[str, torch.dtype], floats: dict[str, torch.dtype]
) -> tuple[PreTrainedModel, dict[str, float]]:
    """The student as an export holds it: scales rounded to the dtypes that are given, by the layers' names; and the
    layers whose weights it holds as floats of a dtype, taken from the export's `twin`, with how far each is from the
    weight that its codes say, rounded likewise."""
    rule, far = copy.deepcopy(model), {}
    layers = dict(packed_layers(rule))
    for name, dtype in floats.items():  # first, by scales that are not rounded
        want, got = layers[name].weight.to(dtype), twin.get_submodule(name).get_parameter("weight").detach()
        far[name] = difference(got, want)
        rule.set_submodule(name, twin.get_submodule(name))
    for name, dtype in scales.items():
        layer = layers[name]
        part = 1 if layer.grid.zero.is_integer() else 2  # half-integer levels are stored with half the scale
        scale = (layer.scales() / part).to(dtype).float() * part
        layer.grid, layer.scale = replace(layer.grid, scales="float32"), scale
        layer.release()
    return rule, far


def verify_gptq(model: PreTrainedModel, folder: Path, batches: list[dict[str, Tensor]]) -> dict[str, Any]:
    """The checkpoint, read by the formula of its layout, by its own rule: scales in float16, inputs in floats."""
    place = folder / "gptq"
    read_export(place)
    found = Checkpoint.read(place)
    layers, twin = dict(packed_layers(model)), floats_of(model)
    if unknown := found.packed.keys() - layers.keys():
        raise ValueError(f"the export names {sorted(unknown)[:3]}, which are no packed layers: export again")
    state = found.others | {f"{n}.weight": layers[n].laid_out(found.weight(n)) for n in found.packed}
    missing, unexpected = twin.load_state_dict(state, strict=False)
    if lost := [*unexpected, *(name for name in missing if name not in twin.all_tied_weights_keys)]:
        raise ValueError(f"the export does not hold the model whole: {lost[:3]}; export again")
    tied = plan_of(model).tied
    floats = {n: found.others[f"{tied.get(n, n)}.weight"].dtype for n in layers if n not in found.packed}
    rule, far = as_stored(model, twin, dict.fromkeys(found.packed, torch.float16), floats)
    for _, layer in packed_layers(rule):
        layer.input_quantizer = None
    differences = Differences(rule)
    for inputs in batches:
        differences.add(inputs, *see(twin, differences.packed, inputs))
    differences.alone |= far
    return differences.facts() | {
        "rule": "scales in float16, inputs in floats",
        "read": "by the formula of the layout; no kernel ran",
        "student_by_this_rule": max(apart(see(rule, (), x)[0], see(model, (), x)[0]) for x in batches),
    }


def verify_compressed(model: PreTrainedModel, folder: Path, batches: list[dict[str, Tensor]]) -> dict[str, Any]:
    """The twin in stock transformers, by its own rule for dynamic symmetric inputs; token tables whole."""
    place = folder / "compressed-tensors"
    read_export(place)
    options: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True, "trust_remote_code": False}
    other = type(model).from_pretrained(place, **options).eval()
    layers = dict(packed_layers(model))
    quantizers = [layer.input_quantizer for layer in layers.values()]
    stretched = any(q is not None and q.grid.symmetric and not q.ranges.static for q in quantizers)
    dtype: Any = type(model.config).from_pretrained(place).dtype or torch.float32
    stored = other.state_dict()
    see(other, (), batches[0])  # which decompresses it
    tables = {
        name: dtype
        for name, layer in layers.items()
        if isinstance(layer, PackedEmbedding) and f"{name}.weight_scale" not in stored
    }
    ends = plan_of(model).tied  # whose codes are their tables'
    held = {n: dtype for n in layers if n in ends.values() or (n not in tables and n not in ends)}
    as_held, far = as_stored(model, other, {} if dtype == torch.float32 else held, tables)
    for static in static_ranges(as_held):
        static.scale.copy_(static.scale.to(dtype))
    differences = Differences(as_held, stretched)
    for inputs in batches:
        differences.add(inputs, *see(other, differences.packed, inputs))
    differences.alone |= far
    rule = "absmax / ((2^bits - 1) / 2) there, absmax / (2^(bits - 1) - 1) here" if stretched else "the same"
    return differences.facts() | {"scale_of_inputs": rule}
