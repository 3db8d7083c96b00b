"""A saved student as a GGUF file, which llama.cpp and all that is built on it read: codes copied, never rounded anew.

Each packed layer becomes the smallest of ggml's types that holds its integers exactly (`zsaq.deploy.gguf.layouts`), and
scales become float16, which those of `-s16` are already. Matrices in floats keep their values in the narrowest of
float16, bfloat16 and float32 that has them; vectors are float32, as llama.cpp wants them. Inputs are not written: for
each of these types llama.cpp rounds them to 8 bits in blocks of 32 or 256, whatever the student's own rule is.
"""

from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from zsaq.deploy.foreign import in_one_line
from zsaq.deploy.gguf.blocks import Stored, store
from zsaq.deploy.gguf.families import Family, arch_of, describe, family_of, frequencies
from zsaq.deploy.gguf.vocabulary import LIKE, add_vocabulary, taken_from
from zsaq.io.loading import load
from zsaq.quant.grid import Grid
from zsaq.quant.grid import describe as describe_grid
from zsaq.quant.heads import token_table
from zsaq.quant.layers import quant_activations
from zsaq.quant.packed import PackedConv2d, PackedEmbedding, PackedExpertLinear, packed_layers
from zsaq.quant.plan import plan_of

FILE: Final = "model.gguf"
TURNED: Final = (".attn_q.weight", ".attn_k.weight", ".attn_q.bias", ".attn_k.bias")


def to_gguf(source: str | Path, target: Path, like: str | Path | None = None) -> dict[str, Any]:
    """Write model.gguf into the new folder `target`; returns facts about it.

    `like`: a GGUF of the same model whose tokenizer and description are taken, where the student's own files do not
    suffice. Raises ValueError for a model or a tokenizer that llama.cpp does not have, and for layers that none of its
    types holds, by name; every tensor is read back and compared bit for bit.
    """
    source = Path(source)
    model = load(source, dtype=torch.float32)
    family = family_of(model.config)
    tensors, floats = stored_layers(model), named_floats(model)
    target.mkdir()
    writer = gguf.GGUFWriter(target / FILE, family.arch)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    changed = describe(model.config, family, writer)
    size = table_rows(model)
    with in_one_line(model, "has a tokenizer that is not written to GGUF", LIKE):
        if like is None:
            writer.add_name(source.name)
            tokenizer = add_vocabulary(source, size, writer)
        else:
            tokenizer = taken_from(Path(like), writer, family.arch, size)
    names = gguf.get_tensor_name_map(arch_of(family), model.config.num_hidden_layers)
    wrote: dict[str, np.ndarray] = {}
    types: dict[str, int] = {}

    def add(name: str, data: np.ndarray, values: np.ndarray, kind: str) -> None:
        place = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if place is None:
            raise ValueError(f"{name} has no place in a {family.arch} of llama.cpp")
        order = turned(place, family, model)
        data, values = (data, values) if order is None else (data[order], values[order])
        raw = None if kind in ("F32", "F16") else gguf.GGMLQuantizationType[kind]
        writer.add_tensor(place, np.ascontiguousarray(data), raw_dtype=raw)
        wrote[place] = values
        types[kind] = types.get(kind, 0) + (values.ndim > 1)

    for name, layer in tensors.items():
        add(f"{name}.weight", layer.rows, layer.values, layer.layout.name)
    for name, value in floats.items():
        shifted = value + family.shift if value.ndim == 1 and name.endswith("norm.weight") else value
        kind = "F32" if value.ndim == 1 else narrowest(shifted)
        add(name, in_kind(shifted, kind), shifted.numpy(), kind)
    if (slower := frequencies(model)) is not None:
        writer.add_tensor("rope_freqs.weight", slower.numpy())
        wrote["rope_freqs.weight"] = slower.numpy()
    writer.add_file_type(FILE_TYPES.get(max(types, key=lambda kind: types[kind]), gguf.LlamaFileType.GUESSED))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    check_written(target / FILE, wrote)
    notes = dict.fromkeys(note for layer in tensors.values() for note in layer.changed)
    worst = max((layer.scale_changed for layer in tensors.values()), default=0.0)
    if worst:
        changed.append(f"scales are rounded to float16, by {worst:.1e} of themselves at most (-s16 has them so before)")
    return {
        "format": "gguf",
        "architecture": family.arch,
        "tokenizer": tokenizer,
        "types": {kind: count for kind, count in types.items() if count},
        "bytes": (target / FILE).stat().st_size,
        "scale_changed": worst,
        "changed": [*changed, *notes, *input_rules(model, tensors)],
    }


FILE_TYPES: Final = {
    "Q4_0": gguf.LlamaFileType.MOSTLY_Q4_0, "Q5_0": gguf.LlamaFileType.MOSTLY_Q5_0,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0, "Q2_K": gguf.LlamaFileType.MOSTLY_Q2_K,
    "Q3_K": gguf.LlamaFileType.MOSTLY_Q3_K_M, "Q6_K": gguf.LlamaFileType.MOSTLY_Q6_K,
    "TQ2_0": gguf.LlamaFileType.MOSTLY_TQ2_0, "F16": gguf.LlamaFileType.MOSTLY_F16,
}  # fmt: skip


def stored_layers(model: PreTrainedModel) -> dict[str, Stored]:
    """The packed layers in ggml's types, by name. Raises ValueError for those that have none."""
    tied, layers = plan_of(model).tied, {}
    if others := [name for name, _ in quant_activations(model)]:
        raise ValueError(f"{others[0]} is a quantized activation, and GGUF has none")
    for name, layer in packed_layers(model):
        if isinstance(layer, PackedConv2d | PackedExpertLinear):
            raise ValueError(f"{name} is a {type(layer).__name__}, which is not written to GGUF")
        if name in tied:
            continue
        try:
            layers[name] = store(layer)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return layers


def table_rows(model: PreTrainedModel) -> int:
    """Tokens that the table has room for."""
    table: Any = token_table(model)
    return len(table.weight)


def named_floats(model: PreTrainedModel) -> dict[str, Tensor]:
    """What is not quantized, float32, by its name; what is tied once."""
    packed = {f"{name}.{key}" for name, layer in packed_layers(model) for key, _ in layer.named_buffers()}
    kept = {id(value) for value in model.parameters()}
    found: dict[str, Tensor] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if name not in packed and id(value) in kept:
            kept.discard(id(value))
            found[name] = value.detach().float()
    return found


def turned(place: str, family: Family, model: PreTrainedModel) -> np.ndarray | None:
    """The order of rows in which those that rotate together are neighbours; None where rows stay. transformers rotates
    row i of a head with the one half a head behind it, llama.cpp's `llama` with the next."""
    if not family.turned or not place.endswith(TURNED):
        return None
    config: Any = model.config
    count = config.num_attention_heads if ".attn_q." in place else config.num_key_value_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return np.arange(count * size).reshape(count, 2, size // 2).swapaxes(1, 2).ravel()


def narrowest(value: Tensor) -> str:
    """Of F16, BF16 and F32 the first that has these numbers."""
    for kind, dtype in (("F16", torch.float16), ("BF16", torch.bfloat16)):
        if torch.equal(value.to(dtype).float(), value):
            return kind
    return "F32"


def in_kind(value: Tensor, kind: str) -> np.ndarray:
    if kind == "BF16":
        return value.bfloat16().view(torch.uint8).numpy()
    return (value.half() if kind == "F16" else value).numpy()


def input_rules(model: PreTrainedModel, tensors: dict[str, Stored]) -> list[str]:
    """In what llama.cpp's rounding of inputs differs from the student's."""
    rules = set[str]()
    for name, layer in packed_layers(model):
        if name not in tensors or isinstance(layer, PackedEmbedding):
            continue
        size, quantizer = tensors[name].layout.size, layer.input_quantizer
        theirs = f"inputs are rounded to 8 bits in blocks of {size}"
        if quantizer is None:
            rules.add(f"{theirs}, and stay floats in the student")
        elif quantizer.ranges.static or quantizer.grid != Grid(8, per=size):
            rules.add(f"{theirs}; the student's are {describe_grid(quantizer.grid)}")
        elif size == 32:
            rules.add("scales of inputs, 32 of which share one, are rounded to float16")
    return sorted(rules)


def check_written(file: Path, wrote: dict[str, np.ndarray]) -> None:
    """Every tensor of the file as the package gguf reads it is what was meant, bit for bit."""
    read = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    assert read.keys() == wrote.keys(), read.keys() ^ wrote.keys()
    for name, values in wrote.items():
        got = gguf.dequantize(read[name].data, read[name].tensor_type)
        assert np.array_equal(got.reshape(values.shape), values), f"{name} does not come back"
