"""GPTQ's layout read plainly, by its formula alone: what a kernel would multiply with."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import torch
from safetensors.torch import load_file
from torch import Tensor

from zsaq.deploy.gptq.layout import WIDTHS

FORMATS: Final = ("gptq", "gptq_v2")
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
            found = cls(packed, tensors, config["bits"], config["checkpoint_format"])
            found.check()
            return found
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise ValueError(f"{folder.name} is no checkpoint in GPTQ's layout ({error}): export it again") from None

    def check(self) -> None:
        """Raises ValueError for what the formula does not read: it counts to `bits`, and looks groups up."""
        if type(self.bits) is not int or self.bits not in WIDTHS:
            raise ValueError(f"its bits are {self.bits!r}, and the layout has {', '.join(map(str, WIDTHS))}")
        if self.format not in FORMATS:
            raise ValueError(f"its format is {self.format!r}, and {' and '.join(FORMATS)} are known")
        for name, tensors in self.packed.items():
            group, inputs = tensors["g_idx"], len(tensors["qweight"]) * 32 // self.bits
            if group.shape != (inputs,) or not bool(((group >= 0) & (group < len(tensors["scales"]))).all()):
                raise ValueError(f"{name} has {inputs} inputs, and its g_idx does not name a group for each")

    def weight(self, name: str) -> Tensor:
        """float32 [out, in]: (u - zero) * scale."""
        tensors = self.packed[name]
        zero = values(tensors["qzeros"].T, self.bits).T + int(self.format == "gptq")
        group = tensors["g_idx"].long()
        return (tensors["scales"].float()[group] * (values(tensors["qweight"], self.bits) - zero[group])).T
