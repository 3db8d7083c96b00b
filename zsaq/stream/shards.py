"""The files of a saved model, written one by one as its parts get ready."""

import json
from pathlib import Path
from typing import Final, final

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

INDEX: Final = "model.safetensors.index.json"


@final
class Shards:
    """`add` writes a file of tensors, `count` of them in all; `finish` their index."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count
        self.places: dict[str, str] = {}
        self.files = self.bytes = 0

    def add(self, tensors: dict[str, Tensor]) -> None:
        """Written and read back. Raises ValueError if what comes back is not what was written."""
        self.files += 1
        name = f"model-{self.files:05d}-of-{self.count:05d}.safetensors"
        own = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        save_file(own, self.folder / name, metadata={"format": "pt"})
        with safe_open(self.folder / name, framework="pt") as file:
            if wrong := [key for key, value in own.items() if not torch.equal(file.get_tensor(key), value)]:
                raise ValueError(f"{wrong[0]} did not come back as saved; nothing was written")
        self.places |= dict.fromkeys(own, name)
        self.bytes += sum(value.nbytes for value in own.values())

    def finish(self) -> None:
        assert self.files == self.count
        index = {"metadata": {"total_size": self.bytes}, "weight_map": dict(sorted(self.places.items()))}
        (self.folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
