"""The folder of a checkpoint: a manifest, replaced whole, and a state of every process for each stage that it names.

A state is written beside those that the manifest names, which are taken away only after it names the new one.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, final

import torch
import torch.distributed as dist

from zsaq.atomic import write_text
from zsaq.train.state import read_state, write_state

MANIFEST: Final = "zsaq_checkpoint.json"
VERSION: Final = 1
LARGEST: Final = 2**24  # bytes of a manifest
ANEW: Final = "delete the folder to begin anew"


def agreed(*numbers: int) -> list[int]:
    """The largest of each over all processes."""
    if not (dist.is_available() and dist.is_initialized()):
        return list(numbers)
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    largest = torch.tensor(numbers, device=device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest.tolist()


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@final
class Records:
    """What is kept in `folder` of a run that `key` describes: by the path of a stage the step after which its state was
    taken (None: the last), and the files of the state; and the `seconds` that stages had taken by then."""

    def __init__(self, folder: Path, key: Mapping[str, str]) -> None:
        self.folder, self.key, self.count = folder, dict(key), 0
        self.steps: dict[str, int | None] = {}
        self.files: dict[str, list[dict[str, Any]]] = {}
        self.seconds: dict[str, float] = {}

    @classmethod
    def read(cls, folder: Path) -> "Records":
        """Raises ValueError, with what to do, for a folder whose manifest or states are not what was written."""
        path = folder / MANIFEST
        try:
            if path.stat().st_size > LARGEST:
                raise ValueError(f"it has {path.stat().st_size} bytes")
            data = json.loads(path.read_bytes())
            if data["format_version"] != VERSION:
                raise ValueError(f"its format_version is {data['format_version']!r:.40}, this zsaq reads {VERSION}")
            records = cls(folder, {str(name): str(value) for name, value in data["key"].items()})
            records.count = int(data["count"])
            for stage, each in data["records"].items():
                if each["step"] is not None and (type(each["step"]) is not int or each["step"] < 1):
                    raise ValueError(f"step is {each['step']!r:.40}")
                records.steps[stage] = each["step"]
                records.files[stage] = [dict(file) for file in each["files"]]
            records.seconds = {str(stage): float(seconds) for stage, seconds in data["seconds"].items()}
            if not all(0 <= seconds < math.inf for seconds in records.seconds.values()):
                raise ValueError("its seconds are no times")
            for files in records.files.values():
                for file in files:
                    check(folder, **file)
        except (OSError, ArithmeticError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"the checkpoint {path} cannot be read ({error}): {ANEW}") from error
        return records

    def refuse_others(self, key: Mapping[str, str]) -> None:
        """Raises ValueError, listing what differs, unless the records are of the run that `key` describes."""
        names = [name for name in {**self.key, **key} if self.key.get(name) != key.get(name)]
        if names:
            listed = "; ".join(f"{n} was {self.key.get(n)!r:.300}, now {key.get(n)!r:.300}" for n in names)
            raise ValueError(f"{self.folder} is the checkpoint of another run ({listed}): give what it had, or {ANEW}")

    def write(self, stage: str, step: int | None, state: Any, seconds: Mapping[str, float]) -> None:
        """The state of `stage` in the place of the one before, and of those inside it once it is over (step None).

        All processes call it together. Raises OSError, with all as it was, if it cannot be written.
        """
        count = self.count + 1
        try:
            write_state(self.folder / f"{count:06d}-{rank()}.safetensors", state)
            failed = None
        except OSError as error:
            failed = error
        if agreed(failed is not None)[0]:
            raise failed or OSError("another process could not write its part")
        inside = [other for other in self.steps if step is None and other.startswith(f"{stage}/")]
        before = dict(self.steps), dict(self.files), self.seconds
        for other in inside:
            del self.steps[other], self.files[other]
        self.count, self.steps[stage], self.seconds = count, step, dict(seconds)
        self.files[stage] = []
        if rank() == 0:
            try:
                paths = [self.folder / f"{count:06d}-{each}.safetensors" for each in range(world())]
                self.files[stage] = [
                    {"name": path.name, "size": path.stat().st_size, "sha256": digest(path)} for path in paths
                ]
                self.store()
            except OSError as error:
                failed = error
        if agreed(failed is not None)[0]:
            self.steps, self.files, self.seconds = before
            raise failed or OSError("the main process could not write the manifest")
        if rank() == 0:
            self.sweep()

    def store(self) -> None:
        data = {
            "format_version": VERSION, "key": self.key, "count": self.count, "seconds": self.seconds,
            "records": {stage: {"step": step, "files": self.files[stage]} for stage, step in self.steps.items()},
        }  # fmt: skip
        write_text(self.folder / MANIFEST, json.dumps(data, indent=1) + "\n")

    def sweep(self) -> None:
        """Take away states that the manifest does not name."""
        named = {file["name"] for files in self.files.values() for file in files}
        for path in self.folder.glob("*.safetensors"):
            if path.name not in named:
                path.unlink(missing_ok=True)

    def load(self, stage: str) -> Any:
        """This process's state of the stage."""
        return read_state(self.folder / self.files[stage][rank()]["name"])


def check(folder: Path, name: str, size: int, sha256: str) -> None:
    """Raises ValueError unless the file is what the manifest says."""
    path = folder / name
    if Path(name).name != name or not name.endswith(".safetensors"):
        raise ValueError(f"{name!r:.80} is no plain name")
    if not path.is_file() or path.stat().st_size != size or digest(path) != sha256:
        raise ValueError(f"{name} is missing or not as it was written")


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
