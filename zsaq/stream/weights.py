"""The tensors of a folder of safetensors, read one by one when they are asked for."""

from collections.abc import Sequence
from pathlib import Path
from typing import final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from zsaq.io.folder import INDEX, WEIGHTS, weight_files
from zsaq.quant.guard import Header, read_header


@final
class Weights:
    """Every tensor is a copy: nothing of a file stays in memory when it has been read.

    `header`: name -> dtype as safetensors calls it, and shape. Raises ValueError for a folder without safetensors.
    """

    def __init__(self, folder: Path) -> None:
        self.files: dict[str, Path] = {}
        self.header: Header = {}
        for path in listed(folder):
            own = read_header([str(path)])
            if twice := sorted(own.keys() & self.header.keys()):
                raise ValueError(f"{path}: {twice[0]} stands in another file already; fetch the files again")
            self.header |= own
            self.files |= dict.fromkeys(own, path)
        if not self.files:
            raise ValueError(f"{folder} holds no safetensors, and nothing else is read: save the model in these")

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """In `dtype`, by default its own. Raises ValueError if a float of it is not finite, or the file is damaged."""
        return self._read(name, None, dtype)

    def rows(self, name: str, index: slice | Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
        """Some of the rows of a matrix, as `tensor` reads it."""
        return self._read(name, index, dtype)

    def _read(self, name: str, index: slice | Sequence[int] | None, dtype: torch.dtype | None) -> Tensor:
        try:
            with safe_open(self.files[name], framework="pt") as file:
                if index is None:
                    found = file.get_tensor(name)
                elif isinstance(index, slice):
                    found = file.get_slice(name)[index]
                else:
                    part = file.get_slice(name)
                    found = torch.cat([part[each : each + 1] for each in index])
                value = found.to(dtype or found.dtype, copy=True)
        except SafetensorError as error:
            raise ValueError(f"{self.files[name]} is damaged ({error}); fetch the files again") from error
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"{name}: not finite in the teacher: give a model that works")
        return value


def listed(folder: Path) -> list[Path]:
    """The files that hold a model in `folder`: those that `from_pretrained` reads, or all that lie there. Raises
    ValueError as `weight_files` does."""
    named = any((folder / name).is_file() for name in (WEIGHTS, INDEX))
    return weight_files(folder, None) if named else sorted(folder.glob("*.safetensors"))


def bytes_of(folder: Path) -> int:
    """Of these files."""
    return sum(path.stat().st_size for path in listed(folder))
