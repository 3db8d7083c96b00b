"""The files of a saved model, written one by one as its parts get ready."""

import json
from pathlib import Path
from typing import Final, final

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

SIZE: Final = 2**27  # bytes that wait for their file at most, beside what was added last


@final
class Shards:
    """`add` tensors; `finish` gives the files their names, and writes their index where they are several."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.files = folder, list[list[str]]()
        self.waiting: dict[str, Tensor] = {}
        self.bytes = 0

    def add(self, tensors: dict[str, Tensor]) -> None:
        """Raises ValueError if what was written does not come back."""
        self.waiting |= {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        if sum(value.nbytes for value in self.waiting.values()) >= SIZE:
            self.write()

    def write(self) -> None:
        """What waits becomes a file, and is read back."""
        path = self.folder / f"{len(self.files)}.safetensors"
        save_file(self.waiting, path, metadata={"format": "pt"})
        with safe_open(path, framework="pt") as file:
            if wrong := [key for key, value in self.waiting.items() if not torch.equal(file.get_tensor(key), value)]:
                raise ValueError(f"{wrong[0]} did not come back as saved; nothing was written")
        self.bytes += sum(value.nbytes for value in self.waiting.values())
        self.files.append(list(self.waiting))
        self.waiting = {}

    def finish(self) -> None:
        """As transformers names them."""
        if self.waiting:
            self.write()
        count = len(self.files)
        if count == 1:
            (self.folder / "0.safetensors").rename(self.folder / "model.safetensors")
            return
        places: dict[str, str] = {}
        for number, names in enumerate(self.files):
            name = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
            (self.folder / f"{number}.safetensors").rename(self.folder / name)
            places |= dict.fromkeys(names, name)
        index = {"metadata": {"total_size": self.bytes}, "weight_map": dict(sorted(places.items()))}
        text = json.dumps(index, indent=2) + "\n"
        (self.folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
