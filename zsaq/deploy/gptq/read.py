"""GPTQ's layout read plainly, by its formula alone: what a kernel would multiply with."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import torch
from safetensors.torch import load_file
from torch import Tensor

KEYS: Final = ("qweight", "qzeros", "scales", "g_idx")


def values(packed: Tensor, bits: int) -> Tensor:
    """int32 [n * 32 / bits, m] of words [n, m]: bit j of value i is bit k % 32 of word k // 32, k = i * bits + j."""
    first = torch.arange(len(packed) * 32 // bits) * bits
    found = torch.zeros(len(first), packed.shape[1], dtype=torch.int32)
    for j in range(bits):
        place = first + j
        found |= (packed[place // 32] >> (place % 32)[:, None] & 1) << j
    return found


@final
@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: `packed`, the four tensors of each layer by its name, and all other tensors."""

    packed: dict[str, dict[str, Tensor]]
    others: dict[str, Tensor]
    bits: int
    format: str

    @classmethod
    def read(cls, folder: Path) -> "Checkpoint":
        """Raises ValueError for a folder that is no such checkpoint."""
        try:
            config: Any = json.loads((folder / "config.json").read_text())["quantization_config"]
            tensors: dict[str, Tensor] = {}
            for file in sorted(folder.glob("*.safetensors")):
                tensors |= load_file(file)
            names = sorted(key.removesuffix(".qweight") for key in tensors if key.endswith(".qweight"))
            packed = {name: {key: tensors.pop(f"{name}.{key}") for key in KEYS} for name in names}
            return cls(packed, tensors, config["bits"], config["checkpoint_format"])
        except (KeyError, TypeError, OSError) as error:
            raise ValueError(f"{folder.name} is no checkpoint in GPTQ's layout ({error}): export it again") from None

    def weight(self, name: str) -> Tensor:
        """float32 [out, in]: (u - zero) * scale."""
        tensors = self.packed[name]
        zero = values(tensors["qzeros"].T, self.bits).T + int(self.format == "gptq")
        group = tensors["g_idx"].long()
        return (tensors["scales"].float()[group] * (values(tensors["qweight"], self.bits) - zero[group])).T
