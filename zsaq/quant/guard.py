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

from zsaq.quant.layers import quant_activations
from zsaq.quant.packed import PackedLayer, packed_layers

NOTE: Final = "!! This is a zsaq model: pip install zsaq, and import zsaq before from_pretrained !!"
FLOATS: Final = ("F64", "F32", "F16", "BF16")
DTYPE_NAMES: Final = {torch.uint8: "U8", torch.int64: "I64", torch.float16: "F16", torch.float32: "F32"}
AGAIN: Final = "save the student again with save_pretrained, or fetch the files again"
TRAINED: Final = ("latent", *(f"weight_quantizer.ranges.{each}" for each in ("scale", "zero", "unit")))  # of `latents`
DECOY: Final = ("U8", (1,))
SPARE, TIMES = 2**28, 4  # bytes of masks and the like, and how many times the files' size they may have on top

Header = dict[str, tuple[str, tuple[int, ...]]]


def decoys(layers: list[str]) -> dict[str, Tensor]:
    """What no reader but us can pass over: the note, and one byte for the weight of each of the packed `layers`."""
    return {name: torch.zeros(1, dtype=torch.uint8) for name in (NOTE, *(f"{layer}.weight" for layer in layers))}


def expect(model: PreTrainedModel) -> None:
    """Tell transformers, for this model alone: decoys are no surprise, and whatever was saved and is missing is one."""
    layers = "|".join(re.escape(name) for name, _ in packed_layers(model))
    known: Any = model._keys_to_ignore_on_load_unexpected
    several = list if known is None else type(known)  # transformers 5.5 has lists or None there, 5.23 has sets
    trained = "|".join(re.escape(name) for name in TRAINED)
    decoyed = [rf"^{re.escape(NOTE)}$", rf"^({layers})\.(weight|{trained})$"]
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


def trained_shapes(layer: nn.Module) -> dict[str, tuple[int, ...]]:
    """What a checkpoint of training may hold of a layer besides its codes."""
    if not isinstance(layer, PackedLayer) or layer.table is not None:
        return {}
    shapes = [layer.shape, tuple(layer.scale.shape), tuple(layer.scale.shape)]
    return dict(zip(TRAINED, shapes + [(1,)] * layer.grid.scaling.united, strict=False))


def check_header(model: nn.Module, header: Header) -> None:
    """Raises ValueError for missing, foreign, wrongly shaped or wrongly typed tensors, before any of them is read."""
    state = model.state_dict()
    decoyed = {NOTE, *(f"{name}.weight" for name, _ in packed_layers(model))}
    header = {key: form for key, form in header.items() if key not in decoyed or form != DECOY}
    for name, layer in (*packed_layers(model), *quant_activations(model)):
        buffers = {key: state[key] for part, _ in layer.named_buffers() if (key := f"{name}.{part}") in state}
        for key, value in buffers.items():
            wanted = DTYPE_NAMES[value.dtype], tuple(value.shape)
            if key not in header:
                raise ValueError(f"{name}: the tensor {key} is missing; {AGAIN}")
            if header[key] != wanted:
                raise ValueError(f"{name}: {key} is {header[key]}, its plan asks for {wanted}; {AGAIN}")
        shapes = {f"{name}.{key}": shape for key, shape in trained_shapes(layer).items()}
        for key in shapes.keys() & header.keys():
            if header[key][0] not in FLOATS or header[key][1] != shapes[key]:
                raise ValueError(f"{name}: {key} is {header[key]}, its plan asks for floats {shapes[key]}; {AGAIN}")
        known = {*buffers, *shapes, f"{name}.bias"}
        if extra := [key for key in header if key.startswith(f"{name}.") and key not in known]:
            raise ValueError(f"{name}: its plan knows no tensors {extra}; {AGAIN}")
    for key, (dtype, shape) in header.items():
        if key in state and ((dtype in FLOATS) != state[key].is_floating_point() or shape != tuple(state[key].shape)):
            wanted = state[key].dtype, tuple(state[key].shape)
            raise ValueError(
                f"{key.rpartition('.')[0]}: {key} is {(dtype, shape)}, the model asks for {wanted}; {AGAIN}"
            )


def check_size(model: nn.Module, header: Header) -> None:
    """Raises ValueError for a model whose tensors, beside those in the files, would fill far more memory than these:
    what a config asks for and no file holds is drawn or computed, and would be allocated first."""
    tied = getattr(model, "all_tied_weights_keys", {})
    sizes = {name: value.nbytes for name, value in (*model.named_parameters(), *model.named_buffers())}
    held = sum(size for name, size in sizes.items() if name in header)
    more = {name: size for name, size in sizes.items() if name not in header and name not in tied}
    if sum(more.values()) > SPARE + TIMES * held:
        name = max(more, key=lambda name: more[name])
        raise ValueError(
            f"{name}: the config asks for {more[name]:,} bytes that are in no file, whose tensors have {held:,}; "
            f"{AGAIN}"
        )
