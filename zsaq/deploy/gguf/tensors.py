"""A student's tensors as a GGUF file holds them, one after the other: by llama.cpp's names, in its order of rows."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, final

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from zsaq.deploy.checkpoint import check_kinds, refused
from zsaq.deploy.gguf.blocks import Stored, store
from zsaq.deploy.gguf.families import Family, arch_of, frequencies
from zsaq.quant.heads import token_table
from zsaq.quant.layers import Conv1D
from zsaq.quant.packed import PackedConv1D, PackedEmbedding, PackedLayer, PackedLinear, packed_layers
from zsaq.quant.plan import plan_of

TURNED: Final = (".attn_q.weight", ".attn_k.weight", ".attn_q.bias", ".attn_k.bias")


@final
@dataclass(frozen=True)
class Part:
    """A tensor: the layer's or parameter's `name` in the student, its `place` in the file, ggml's type `kind`, the
    `data` as written, and, of a packed layer, what it was made of, less its values."""

    name: str
    place: str
    kind: str
    data: NDArray[Any]
    stored: Stored | None = None


def parts(model: PreTrainedModel, family: Family) -> Iterator[Part]:
    """Every tensor of the file. Raises ValueError for layers that none of ggml's types holds, by name, and for tensors
    that llama.cpp has no place for."""
    names = gguf.get_tensor_name_map(arch_of(family), model.config.num_hidden_layers)

    def place_of(name: str) -> str:
        place = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if place is None:
            raise refused(f"{name} has no place in a {family.arch} of llama.cpp")
        return place

    for name, layer in own_layers(model):
        stored, place = stored_layer(name, layer), place_of(f"{name}.weight")
        kind = stored.layout.name
        assert np.array_equal(gguf.dequantize(stored.rows, gguf.GGMLQuantizationType[kind]), stored.values), name
        data = in_order(stored.rows, place, family, model)
        yield Part(name, place, kind, data, replace(stored, values=np.empty((0, 0), np.float32)))
    for name, value in named_floats(model).items():
        shifted = value + family.shift if value.ndim == 1 and name.endswith("norm.weight") else value
        kind, place = "F32" if value.ndim == 1 else narrowest(shifted), place_of(name)
        yield Part(name, place, kind, in_order(in_kind(shifted, kind), place, family, model))
    if (slower := frequencies(model)) is not None:
        yield Part("rope_freqs", "rope_freqs.weight", "F32", slower.numpy())


def own_layers(model: PreTrainedModel) -> Iterator[tuple[str, PackedLayer]]:
    """The packed layers that hold codes of their own. Raises ValueError for kinds that llama.cpp does not have."""
    tied = plan_of(model).tied
    check_kinds(model, PackedLinear | PackedConv1D | PackedEmbedding, "GGUF holds linear layers and token tables here")
    yield from ((name, layer) for name, layer in packed_layers(model) if name not in tied)


def stored_layer(name: str, layer: PackedLayer) -> Stored:
    """As `store`, and errors tell the layer's name."""
    try:
        return store(layer)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def table_rows(model: PreTrainedModel) -> int:
    """Tokens that the table has room for."""
    table: Any = token_table(model)
    return len(table.weight)


def named_floats(model: PreTrainedModel) -> dict[str, Tensor]:
    """What is not quantized, float32, rows first, by its name; what is tied once."""
    packed = {f"{name}.{key}" for name, layer in packed_layers(model) for key, _ in layer.named_buffers()}
    columns = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)}
    kept = {id(value) for value in model.parameters()}
    found: dict[str, Tensor] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if name not in packed and id(value) in kept:
            kept.discard(id(value))
            found[name] = value.detach().float().T.contiguous() if name in columns else value.detach().float()
    return found


def in_order(data: NDArray[Any], place: str, family: Family, model: PreTrainedModel) -> NDArray[Any]:
    """Rows of queries and keys in which those that rotate together are neighbours: transformers rotates row i of a head
    with the one half a head behind it, llama.cpp's `llama` with the next. All else as it is."""
    if not family.turned or not place.endswith(TURNED):
        return np.ascontiguousarray(data)
    config: Any = model.config
    count = config.num_attention_heads if ".attn_q." in place else config.num_key_value_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return np.ascontiguousarray(data[np.arange(count * size).reshape(count, 2, size // 2).swapaxes(1, 2).ravel()])


def narrowest(value: Tensor) -> str:
    """Of F16, BF16 and F32 the first that has these numbers."""
    for kind, dtype in (("F16", torch.float16), ("BF16", torch.bfloat16)):
        if torch.equal(value.to(dtype).float(), value):
            return kind
    return "F32"


def in_kind(value: Tensor, kind: str) -> NDArray[Any]:
    if kind == "BF16":
        return value.bfloat16().view(torch.uint8).numpy()
    return (value.half() if kind == "F16" else value).numpy()
