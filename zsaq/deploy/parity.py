"""The certificate: that what is deployed computes what was trained, layer by layer and from layer to layer.

A runtime is watched on random inputs (no data): what goes into each quantized layer, and what comes out. Then

- each layer alone: its output is compared with the plain rule in float64, on the very input that it had there;
- between layers: the student runs with each layer's output replaced by the runtime's; what its floats then bring to the
  next layer, and to the logits, is compared with what the runtime's floats brought there.

Everything that a model computes is one or the other, and both agree to float noise. End to end they need not: noise
takes an input across a rounding tie now and then. Such codes are counted; without any, the ends have to agree too.
"""

import copy
import json
import os
import platform
import uuid
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from transformers import PreTrainedModel

from zsaq.deploy.comparison import TOLERANCE, Comparison, difference, norms_of, plain, see
from zsaq.deploy.inputs import random_inputs, text_limit
from zsaq.deploy.onnx.captures import Captures
from zsaq.deploy.onnx.operators import block_of
from zsaq.deploy.onnx.write import BLOCKS, FACTS, MODEL
from zsaq.io.checksums import MANIFEST, seal
from zsaq.io.loading import load
from zsaq.quant.config import Grid
from zsaq.quant.packed import PackedConv2d, PackedEmbedding, PackedLayer, packed_layers
from zsaq.quant.plan import plan_of
from zsaq.quant.quantizer import Quantizer
from zsaq.quant.ranges import MinMax

CERTIFICATE: Final = "certificate.json"
SHAPES: Final = ((1, 2), (1, 16), (3, 24))  # batch, tokens


def batches_of(model: PreTrainedModel, seed: int) -> list[dict[str, Tensor]]:
    """Random tokens, rows of several lengths, so that some are padded; or noise as images."""
    if model.main_input_name == "pixel_values":
        return [random_inputs(model, (2,), seed)]
    made = []
    for i, (batch, length) in enumerate(SHAPES):
        inputs = random_inputs(model, (batch, min(length, text_limit(model))), seed + i)
        inputs["attention_mask"][1:, length // 2 + 1 :] = 0
        made.append(inputs)
    return made


def verify_loaded(model: PreTrainedModel, again: PreTrainedModel, batches: list[dict[str, Tensor]]) -> dict[str, Any]:
    """The student that `zsaq.load` gives, and a second load against the first, bit for bit."""
    found, same = Comparison(model), True
    for inputs in batches:
        logits, seen = see(model, found.packed, inputs)
        found.add(inputs, logits, seen)
        same &= torch.equal(logits, see(again, (), inputs)[0])
    told = found.told()
    return told | {"agrees": told["agrees"] and same, "bit_equal_when_loaded_again": same}


def read_facts(folder: Path) -> dict[str, Any]:
    """What export.json tells. Raises ValueError if that is not what an export has, OSError if it is not there."""
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    parts = [facts.get("convolutions"), facts.get("blocks", {})] if isinstance(facts, dict) else [None]
    if not all(isinstance(part, dict) for part in parts):
        raise ValueError(f"{folder / FACTS} does not tell of the graph's layers: export the student again")
    return facts


def verify_onnx(
    model: PreTrainedModel, folder: Path, batches: list[dict[str, Tensor]], graph: str = MODEL
) -> dict[str, Any]:
    """The graph in ONNX Runtime; token tables whole, since inputs reach only some of their rows.

    Raises ValueError for a graph that does not run, OSError for one that is not there.
    """
    found = Comparison(model, norms=norms_of(model, batches[0]))
    others = {name: layer for name, layer in found.packed.items() if not isinstance(layer, PackedConv2d)}
    biased = {name: layer._parameters.get("bias") is not None for name, layer in others.items()}
    facts = read_facts(folder)
    captures = Captures(folder / graph, biased, plan_of(model).tied, facts["convolutions"])
    for inputs in batches:
        deployed, logits, arrays = captures.run({name: value.numpy() for name, value in inputs.items()})
        seen = {name: [(torch.tensor(x), torch.tensor(y))] for name, (x, y) in arrays.items()}
        found.add(inputs, torch.tensor(logits), seen, torch.tensor(deployed))
    for name in captures.places:
        if isinstance(layer := found.packed[name], PackedEmbedding):
            rows, _ = plain(layer, torch.arange(layer.num_embeddings))
            got = torch.tensor(captures.rows(name, len(rows)))
            found.alone[name] = max(found.alone.get(name, 0.0), difference(got, rows))
    return found.told()


def verify_blocks(model: PreTrainedModel, folder: Path, batches: list[dict[str, Tensor]]) -> dict[str, Any]:
    """The second graph, by its own rule: a student that rounds the inputs of those layers once a block."""
    other, named = copy.deepcopy(model), read_facts(folder).get("blocks", {})
    layers: dict[str, PackedLayer] = dict(packed_layers(other))
    if unknown := named.keys() - layers.keys():
        raise ValueError(f"{folder / FACTS} names {sorted(unknown)[:3]}, which are no packed layers: export again")
    for name in named:
        layer = layers[name]
        owner = layer if layer.table is None else layer.table
        block = block_of(layer.shape[1], owner.scale.flatten(1).shape[1])
        layer.input_quantizer = Quantizer(Grid(8, per=block), MinMax())
    far = 0.0
    for inputs in batches:
        far = max(far, difference(see(other, (), inputs)[0], see(model, (), inputs)[0]))
    told = verify_onnx(other, folder, batches, BLOCKS)
    return told | {"rule": "inputs rounded once a block, not once a token", "student_by_this_rule": far}


def verify_compressed(model: PreTrainedModel, folder: Path, batches: list[dict[str, Tensor]]) -> dict[str, Any]:
    """The twin in stock transformers, by its own rule for dynamic symmetric inputs; token tables whole."""
    other = (
        type(model).from_pretrained(folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False).eval()
    )
    quantizers = [layer.input_quantizer for _, layer in packed_layers(model)]
    stretched = any(q is not None and q.grid.symmetric and not q.ranges.static for q in quantizers)
    found = Comparison(model, stretched)
    for inputs in batches:
        found.add(inputs, *see(other, found.packed, inputs))
    for name, layer in found.packed.items():
        if isinstance(layer, PackedEmbedding):
            got = other.get_submodule(name).get_parameter("weight").detach()
            found.alone[name] = max(
                found.alone.get(name, 0.0), difference(got, plain(layer, torch.arange(len(got)))[0])
            )
    rule = "absmax / ((2^bits - 1) / 2) there, absmax / (2^(bits - 1) - 1) here" if stretched else "the same"
    return found.told() | {"scale_of_inputs": rule}


def machine() -> dict[str, Any]:
    versions: dict[str, str | None] = {}
    for package in ("zsaq", "torch", "transformers", "onnxruntime", "compressed-tensors"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {"platform": platform.platform(), "processor": torch.backends.cpu.get_cpu_capability(), "versions": versions}


def verify(folder: str | Path, seed: int = 0, write: bool = True) -> dict[str, Any]:
    """Check the saved student in `folder` and every export within it, in float32; returns the certificate.

    `agrees` is true if in every runtime each layer is within `tolerance` (relative to its largest output) of its rule,
    and so is what passes between layers. With `write` the certificate goes into the folder, which is sealed again if it
    was. Raises ValueError as `zsaq.load` does, and for a model that reads neither text nor images.
    """
    folder = Path(folder)
    model, again = (load(folder, dtype=torch.float32) for _ in range(2))
    batches = batches_of(model, seed)
    parts = {"loaded": verify_loaded(model, again, batches)}
    looks = {"onnx": verify_onnx, "onnx blocks": verify_blocks, "compressed-tensors": verify_compressed}
    for name, look in looks.items():
        place = folder / name.split()[0]
        if (place / BLOCKS).is_file() if look is verify_blocks else place.is_dir():
            try:
                parts[name] = look(model, place, batches)
            except (ValueError, OSError, RuntimeError) as error:
                parts[name] = {"agrees": False, "error": f"it does not run: {error}"}
    told = {
        "agrees": all(part["agrees"] for part in parts.values()),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "tolerance": TOLERANCE,
        "seed": seed,
        "inputs": [{name: list(value.shape) for name, value in batch.items()} for batch in batches],
        "machine": machine(),
        **parts,
    }
    if write:
        partial = folder / f".{CERTIFICATE}.{uuid.uuid4().hex[:8]}"
        try:
            partial.write_text(json.dumps(told, indent=1, allow_nan=False) + "\n", encoding="utf-8")
            os.replace(partial, folder / CERTIFICATE)
        finally:
            partial.unlink(missing_ok=True)
        if (folder / MANIFEST).is_file():
            seal(folder)
    return told
