"""GPTQ's layout read plainly, by its formula alone: what a kernel would multiply with."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

KEYS = ("qweight", "qzeros", "scales", "g_idx")


def values(packed: Tensor, bits: int) -> Tensor:
    """int32 [n * 32 / bits, m] of words [n, m]: bit j of value i is bit k % 32 of word k // 32, k = i * bits + j."""
    first = torch.arange(len(packed) * 32 // bits) * bits
    found = torch.zeros(len(first), packed.shape[1], dtype=torch.int32)
    for j in range(bits):
        place = first + j
        found |= (packed[place // 32] >> (place % 32)[:, None] & 1) << j
    return found


def weight_of(tensors: dict[str, Tensor], bits: int, format: str) -> Tensor:
    """float32 [out, in]: (u - zero) * scale, of a layer's four tensors."""
    zero = values(tensors["qzeros"].T, bits).T + int(format == "gptq")
    group = tensors["g_idx"].long()
    return (tensors["scales"].float()[group] * (values(tensors["qweight"], bits) - zero[group])).T


def read_weights(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights [out, in] of the packed layers in `folder`, by the layers' names, and all other tensors.

    Raises ValueError for a folder that is no such checkpoint.
    """
    try:
        config: Any = json.loads((folder / "config.json").read_text())["quantization_config"]
        bits, format = config["bits"], config["checkpoint_format"]
        tensors = {
            key: value for file in sorted(folder.glob("*.safetensors")) for key, value in load_file(file).items()
        }
        names = sorted(key.removesuffix(".qweight") for key in tensors if key.endswith(".qweight"))
        weights = {n: weight_of({key: tensors.pop(f"{n}.{key}") for key in KEYS}, bits, format) for n in names}
    except (KeyError, TypeError, IndexError, RuntimeError, OSError) as error:
        raise ValueError(f"{folder.name} is no checkpoint in GPTQ's layout ({error}): export it again") from None
    return weights, tensors
