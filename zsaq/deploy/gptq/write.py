"""A saved student as a checkpoint in GPTQ's layout, which transformers, vLLM, SGLang and onnxruntime-genai read.

Codes are copied, never computed from weights again, and what was written is read again by the formula of the layout
and compared bit for bit. The layout holds weights only, of the linear layers in the model's blocks:
- scales are float16 there: exact for students whose scales are (`-s16`), else rounded, by at most 2^-11 of each. They
  may be negative, as GPTQ's own search leaves them: readers multiply with them as they are (read in the sources of
  GPTQModel 7.7 and auto-round 0.16).
- half-integer 2-bit levels: 2 * code + 1, one of -3, -1, 1, 3, with half the scale, in 4 bits. They have no zero: a row
  or group of zeros, whose scale is 0 in float16, is stored as zeros.
- asymmetric grids with their zeros. Format "gptq" holds zero - 1; where a zero is 0, "gptq_v2", which holds zeros.
- 5 to 7 bits stand in 8, since readers agree on no narrower form of them.
- quantized inputs: none. The checkpoint computes with the inputs in floats.
- token tables, heads and what else stands outside of the blocks: floats of the same values.
"""

import json
import re
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from zsaq.atomic import atomic_folder
from zsaq.deploy.checkpoint import ONNX_INSTEAD, check_kinds, in_floats, unquantized, write_checkpoint
from zsaq.deploy.gptq.layout import Layout, Scaling, store
from zsaq.deploy.gptq.read import Checkpoint
from zsaq.io.loading import load
from zsaq.io.saving import weight_bytes
from zsaq.quant.layers import Conv1D
from zsaq.quant.packed import PackedConv1D, PackedEmbedding, PackedLayer, PackedLinear, packed_layers
from zsaq.quant.plan import plan_of

SMALLEST: Final = 2.0**-25  # what float16 rounds to 0
BLOCK: Final = re.compile(r"(.+?)\.(\d+)\.(.+)")  # the list of blocks, the block's number, the layer in it


def in_blocks(model: Any) -> tuple[str, dict[str, PackedLayer]]:
    """The list of blocks, and the quantized linear layers in it, both by name.

    Raises ValueError for a model that reads no text, for quantized modules that readers would leave in floats without a
    word, and for layers in no list of blocks or in several.
    """
    if model.main_input_name != "input_ids":
        raise ValueError(f"readers of GPTQ's layout take text, and this model {model.main_input_name}; {ONNX_INSTEAD}")
    check_kinds(model, PackedLinear | PackedConv1D | PackedEmbedding, "GPTQ's layout holds linear layers")
    linear = {n: layer for n, layer in packed_layers(model) if not isinstance(layer, PackedEmbedding)}
    places = {name: found[1] for name in linear if (found := BLOCK.fullmatch(name))}
    if len(lists := sorted(set(places.values()))) != 1:
        where = " and ".join(lists) or "no list of blocks"
        raise ValueError(f"quantized linear layers stand in {where}, and GPTQ's layout has one list; {ONNX_INSTEAD}")
    return lists[0], {name: layer for name, layer in linear.items() if name in places}


def quantization_config(
    model: nn.Module, blocks: str, layers: dict[str, PackedLayer], layout: Layout
) -> dict[str, Any]:
    """The `quantization_config` of config.json; layers of the blocks that stay in floats are told in both ways that
    readers know. No `meta`: transformers hands no checkpoint that has it to auto-round."""
    config = {
        "quant_method": "gptq",
        "bits": layout.bits,
        "group_size": layout.group,
        "sym": layout.symmetric,
        "desc_act": False,
        "checkpoint_format": layout.format,
        "pack_dtype": "int32",
        "lm_head": False,
        "block_name_to_quantize": blocks,
    }
    inside = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and n.startswith(f"{blocks}.")]
    if left := [name for name in inside if name not in layers]:
        config["modules_in_block_to_quantize"] = [[name] for name in layers]
        config["dynamic"] = {f"-:^{re.escape(name)}$": {} for name in left}
    return config


def told(layers: dict[str, PackedLayer], layout: Layout) -> list[str]:
    """In what the layers in the file differ from the student's, in words."""
    changed, worst, turned, idle, grids = [], 0.0, 0, 0, {layer.grid for layer in layers.values()}
    for name, layer in layers.items():
        scaling = Scaling.of(name, layer)
        scale = scaling.scale
        worst = max(worst, float(((scale.half().float() - scale) / scale).abs().max()))
        turned += bool((scale < 0).any())
        if scaling.idle is not None and not layer.grid.zero.is_integer():
            idle += int(scaling.idle.sum())
    if worst:
        changed.append(f"scales are rounded to float16, by at most {worst:.1e} of each (quantize with -s16 for none)")
    if turned:
        changed.append(f"{turned} layers have negative scales, as the student has: readers multiply with them")
    if any(not grid.zero.is_integer() for grid in grids):
        changed.append("half-integer 2-bit codes c are stored as 2c + 1 in 4 bits, half the scale")
    if idle:
        changed.append(f"{idle} rows or groups of zeros, for which the student has at most {SMALLEST:.0e}, are zeros")
    if narrower := sorted({grid.bits for grid in grids if grid.zero.is_integer() and grid.bits < layout.bits}):
        changed.append(f"codes of {', '.join(map(str, narrower))} bits are stored in {layout.bits}")
    if any(layout.group not in (-1, grid.per) for grid in grids):
        changed.append(f"scales are repeated for groups of {layout.group}, the size that all layers share")
    inputs = {layer.input_quantizer.grid.bits for layer in layers.values() if layer.input_quantizer is not None}
    if inputs:
        bits = " and ".join(map(str, sorted(inputs)))
        changed.append(f"inputs are floats, which the student rounds to {bits} bits: the layout holds weights only")
    return changed


def check_written(folder: Path, layers: dict[str, PackedLayer], state: dict[str, Tensor]) -> None:
    """Read what was written, and compare it bit for bit with the codes times the scales in float16."""
    found = Checkpoint.read(folder)
    assert found.packed.keys() == layers.keys() and found.others.keys() == state.keys(), (
        "tensors are missing or too many"
    )
    for name, layer in layers.items():
        scaling, groups = Scaling.of(name, layer), layer.scales().flatten(1).shape[1]
        zero = 0 if scaling.zero is None else scaling.zero[..., None]
        values = scaling.integers(layer).unflatten(1, (groups, -1)) - zero
        expected = (values * scaling.scale.half().float()[..., None]).flatten(1)
        assert torch.equal(found.weight(name), expected), f"{name} does not come back"
    for key, value in state.items():
        assert torch.equal(found.others[key], value), f"{key} does not come back"


def to_gptq(source: str | Path, target: str | Path) -> dict[str, Any]:
    """Write the student saved in the folder `source` as the checkpoint `target` in GPTQ's layout.

    Returns facts: `format`, `checkpoint_format`, `bits`, `group_size`, `sym`, `layers` (how many are stored as
    integers), `bytes` of the weight files, `student_bytes` of the student's, and `changed`: in what the export differs
    from the student, in words. The folder appears whole or not at all. Raises ValueError if the target exists, and for
    a student that has no form in the layout, by what: see `in_blocks`, `Layout.of` and `Scaling.of`.
    """
    source, target = Path(source), Path(target)
    if target.exists():
        raise ValueError(f"{target} exists already; name a folder that does not")
    model = load(source)
    blocks, layers = in_blocks(model)
    try:
        layout = Layout.of(layers.items())
        packed = {f"{n}.{key}": t for n, layer in layers.items() for key, t in store(n, layer, layout).items()}
        changed = told(layers, layout)
    except ValueError as error:
        raise ValueError(f"{error}; or {ONNX_INSTEAD}") from None
    tied = plan_of(model).tied
    floats = {n: layer for n, layer in packed_layers(model) if n not in layers and n not in tied}
    others = unquantized(model) | {f"{name}.weight": layer.weight for name, layer in floats.items()}
    for end, table in model.all_tied_weights_keys.items():  # which stand in a file once
        if end in others and table in others and others[end].data_ptr() == others[table].data_ptr():
            del others[end]
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = quantization_config(model, blocks, layers, layout)
    changed += [in_floats(name, layer) for name, layer in floats.items()]
    with atomic_folder(target) as folder:
        write_checkpoint(source, folder, others | packed, config)
        (folder / "quantize_config.json").write_text(json.dumps(config["quantization_config"], indent=2) + "\n")
        check_written(folder, layers, others)
        size = weight_bytes(folder)
    return {
        "format": "gptq",
        "checkpoint_format": layout.format,
        "bits": layout.bits,
        "group_size": layout.group,
        "sym": layout.symmetric,
        "layers": len(layers),
        "bytes": size,
        "student_bytes": weight_bytes(source),
        "changed": changed,
    }
