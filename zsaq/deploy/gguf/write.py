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
from numpy.typing import NDArray
from transformers import PreTrainedModel

from zsaq.deploy.checkpoint import refused
from zsaq.deploy.foreign import in_one_line
from zsaq.deploy.gguf.families import describe, family_of
from zsaq.deploy.gguf.tensors import Part, parts, table_rows
from zsaq.deploy.gguf.vocabulary import LIKE, add_vocabulary, taken_from
from zsaq.io.loading import load
from zsaq.quant.grid import Grid
from zsaq.quant.grid import describe as describe_grid
from zsaq.quant.packed import PackedEmbedding, packed_layers

FILE: Final = "model.gguf"
FILE_TYPES: Final = {
    "Q4_0": gguf.LlamaFileType.MOSTLY_Q4_0, "Q5_0": gguf.LlamaFileType.MOSTLY_Q5_0,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0, "Q2_K": gguf.LlamaFileType.MOSTLY_Q2_K,
    "Q3_K": gguf.LlamaFileType.MOSTLY_Q3_K_M, "Q6_K": gguf.LlamaFileType.MOSTLY_Q6_K,
    "TQ2_0": gguf.LlamaFileType.MOSTLY_TQ2_0, "F16": gguf.LlamaFileType.MOSTLY_F16,
}  # fmt: skip


def to_gguf(source: str | Path, target: Path, like: str | Path | None = None) -> dict[str, Any]:
    """Write model.gguf into the new folder `target`; returns facts about it.

    `like`: a GGUF of the same model whose tokenizer is taken, where the student's own files do not suffice. Raises
    ValueError for a model or a tokenizer that llama.cpp does not have, and for layers that none of its types holds, by
    name; every tensor is read back and compared, byte for byte.
    """
    source = Path(source)
    model = load(source, dtype=torch.float32)
    family = family_of(model.config)
    if model.get_output_embeddings() is None:
        raise refused(f"a {type(model).__name__} has no head that writes tokens, which a GGUF is for")
    target.mkdir()
    writer = gguf.GGUFWriter(target / FILE, family.arch)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    changed = describe(model.config, family, writer)
    size = table_rows(model)
    with in_one_line(model, "has a tokenizer that is not written to GGUF", LIKE):
        if like is None:
            writer.add_name(source.name)
            tokenizer, undone = add_vocabulary(source, size, writer)
            changed += undone
        else:
            tokenizer = taken_from(Path(like), writer, family.arch, size)
    wrote = list[Part]()
    for part in parts(model, family):
        raw = None if part.kind in ("F32", "F16") else gguf.GGMLQuantizationType[part.kind]
        writer.add_tensor(part.place, part.data, raw_dtype=raw)
        wrote.append(part)
    kinds = [part.kind for part in wrote if part.data.ndim > 1]
    types = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    writer.add_file_type(FILE_TYPES.get(max(types, key=lambda kind: types[kind]), gguf.LlamaFileType.GUESSED))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert not otherwise(target / FILE, wrote)
    stored = {part.name: part.stored for part in wrote if part.stored is not None}
    worst = max((each.scale_changed for each in stored.values()), default=0.0)
    if worst:
        changed.append(f"scales are rounded to float16, by {worst:.1e} of themselves at most (-s16 has them so before)")
    changed += dict.fromkeys(note for each in stored.values() for note in each.changed)
    sizes = {name: each.layout.size for name, each in stored.items()}
    return {
        "format": "gguf",
        "architecture": family.arch,
        "tokenizer": tokenizer,
        "types": types,
        "bytes": (target / FILE).stat().st_size,
        "scale_changed": worst,
        "changed": [*changed, *input_rules(model, sizes, types)],
    }


def input_rules(model: PreTrainedModel, sizes: dict[str, int], types: dict[str, int]) -> list[str]:
    """In what llama.cpp's rounding of inputs differs from the student's, for layers in blocks of such `sizes`."""
    rules = {f"inputs of layers in {kind} are rounded to it too" for kind in ("F16", "BF16") if kind in types}
    for name, layer in packed_layers(model):
        if name not in sizes or isinstance(layer, PackedEmbedding):
            continue
        size, quantizer = sizes[name], layer.input_quantizer
        theirs = f"inputs are rounded to 8 bits in blocks of {size}"
        if quantizer is None:
            rules.add(f"{theirs}, and stay floats in the student")
        elif quantizer.ranges.static or quantizer.grid != Grid(8, per=size):
            rules.add(f"{theirs}; the student's are {describe_grid(quantizer.grid)}")
        elif size == 32:
            rules.add("scales of inputs, 32 of which share one, are rounded to float16")
    return sorted(rules)


def otherwise(file: Path, wanted: list[Part]) -> list[str]:
    """The tensors that the file has otherwise, byte for byte, lacks, or has beside those."""
    read = {tensor.name: tensor.data for tensor in gguf.GGUFReader(file).tensors}
    wrong = read.keys() ^ {part.place for part in wanted}
    wrong |= {part.place for part in wanted if part.place in read and not same(read[part.place], part.data)}
    return sorted(wrong)


def same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    got, want = (np.ascontiguousarray(each).reshape(-1).view(np.uint8) for each in (one, other))
    return np.array_equal(got, want)
