"""What the files of weights say before a tensor is read, and what they say to a reader that has never heard of zsaq.

Without `import zsaq`, transformers takes a saved model for a float one, finds none of its weights, draws them at random
and only logs it (huggingface/transformers#35963). So each file holds, for every packed layer, a decoy: one byte under
the float weight's own name, whose shape fits no layer, and that is an error there. One more byte has a name that says
what to do; it stands first in the report beside the error. We skip them, and files without any are read as well.
"""

import re
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from zsaq.quant.packed import packed_layers, quantized

NOTE: Final = "!! This is a zsaq model: pip install zsaq, and import zsaq before from_pretrained !!"
FLOATS: Final = ("F64", "F32", "F16", "BF16")
DTYPE_NAMES: Final = {torch.uint8: "U8", torch.int64: "I64", torch.float32: "F32"}
AGAIN: Final = "save the student again with save_pretrained, or fetch the files again"
DECOY: Final = ("U8", (1,))

Header = dict[str, tuple[str, tuple[int, ...]]]


def decoys(layers: list[str]) -> dict[str, Tensor]:
    """What no reader but us can pass over: the note, and one byte for the weight of each of the packed `layers`."""
    return {name: torch.zeros(1, dtype=torch.uint8) for name in (NOTE, *(f"{layer}.weight" for layer in layers))}


def expect(model: PreTrainedModel) -> None:
    """Tell transformers, for this model alone: decoys are no surprise, and whatever was saved and is missing is one."""
    layers = "|".join(re.escape(name) for name, _ in packed_layers(model))
    known: Any = model._keys_to_ignore_on_load_unexpected
    several = list if known is None else type(known)  # transformers 5.5 has lists or None there, 5.23 has sets
    decoyed = [rf"^{re.escape(NOTE)}$", rf"^({layers})\.weight$"]
    model._keys_to_ignore_on_load_unexpected = several([*(known or ()), *decoyed])
    never: Any = model._keys_to_ignore_on_save or ()
    model._keys_to_ignore_on_load_missing = several(rf"^{re.escape(name)}$" for name in never)


def read_header(files: list[str]) -> Header:
    """Name -> dtype as safetensors calls it, and shape. No tensor is read. Raises ValueError for any other file."""
    header: Header = {}
    for file in files:
        if Path(file).suffix != ".safetensors":
            raise ValueError(f"{file} is not a safetensors file; zsaq reads nothing else: {AGAIN}")
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a dict)
                    part = tensors.get_slice(name)
                    if name in header:
                        raise ValueError(f"{file}: {name} stands in another file already; {AGAIN}")
                    header[name] = (part.get_dtype(), tuple(part.get_shape()))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is damaged ({error}); {AGAIN}") from error
    return header


def check_header(model: nn.Module, header: Header) -> None:
    """Raises ValueError for missing, foreign, wrongly shaped or wrongly typed tensors, before any of them is read."""
    state = model.state_dict()
    decoyed = {NOTE, *(f"{name}.weight" for name, _ in packed_layers(model))}
    header = {key: form for key, form in header.items() if key not in decoyed or form != DECOY}
    for name, layer in quantized(model):
        buffers = {key: state[key] for part, _ in layer.named_buffers() if (key := f"{name}.{part}") in state}
        for key, value in buffers.items():
            wanted = DTYPE_NAMES[value.dtype], tuple(value.shape)
            if key not in header:
                raise ValueError(f"{name}: the tensor {key} is missing; {AGAIN}")
            if header[key] != wanted:
                raise ValueError(f"{name}: {key} is {header[key]}, its plan asks for {wanted}; {AGAIN}")
        known = {*buffers, f"{name}.bias"}
        if extra := [key for key in header if key.startswith(f"{name}.") and key not in known]:
            raise ValueError(f"{name}: its plan knows no tensors {extra}; {AGAIN}")
    for key, (dtype, shape) in header.items():
        if key in state and ((dtype in FLOATS) != state[key].is_floating_point() or shape != tuple(state[key].shape)):
            wanted = state[key].dtype, tuple(state[key].shape)
            raise ValueError(
                f"{key.rpartition('.')[0]}: {key} is {(dtype, shape)}, the model asks for {wanted}; {AGAIN}"
            )
