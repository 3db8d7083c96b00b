"""What a recipe notes for the model card, and --push_to_hub."""

import argparse
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedModel

from zsaq import Card, push_to_hub
from zsaq.report.card import Base
from zsaq.report.hub import ready


class HasReal(Protocol):
    """A job, of text or of images."""

    name: str
    real: Any


def add_arguments(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--push_to_hub", metavar="ID", help="also publish the model, with a card, as user/name on the Hub"
    )
    made.add_argument("--license", help="with --push_to_hub: the teacher's licence, where its own card tells none")


def base_of(args: argparse.Namespace, teacher: str | None) -> Base | None:
    """What --push_to_hub needs, asked for before hours of work; None without it. `teacher` is None if it is embedded.

    Raises ValueError if the Hub cannot be written to, or the licence is not known.
    """
    if args.push_to_hub is None:
        return None
    if teacher is None and args.license is None:
        raise ValueError("--push_to_hub needs --license: the embedded teacher has no card that tells one")
    ready(args.push_to_hub)
    if teacher is None:
        return Base("The embedded teacher", {"license": args.license})
    return Base.of(teacher, args.license)


def watch(job: HasReal) -> list[str]:
    """A list that grows whenever `job.real` is read from now on: while it is empty, the run is zero-shot."""
    reads: list[str] = []
    real = job.real
    if real is not None:

        def noted() -> Any:
            reads.append(job.name)
            return real()

        job.real = noted
    return reads


def recipe(path: str | Path) -> dict[str, str]:
    """A script's name in the repository and the hash of its text."""
    script = Path(path)
    return {"recipe": f"recipes/{script.name}", "recipe_sha256": hashlib.sha256(script.read_bytes()).hexdigest()}


@dataclass(frozen=True)
class Documents:
    """A part of what is published: a run's pictures, and its results without the paths of this machine."""

    folder: Path

    def save_pretrained(self, target: Path) -> None:
        for picture in [*self.folder.glob("*.png"), *self.folder.glob("pictures/*.png")]:
            copy = Path(target) / picture.relative_to(self.folder)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(picture, copy)
        results = json.loads((self.folder / "results.json").read_text())
        told = {key: value for key, value in results.items() if key != "arguments"}
        (Path(target) / "results.json").write_text(json.dumps(told, indent=1))


def publish(student: PreTrainedModel, reader: Any, folder: Path, base: Base, repo_id: str) -> str:
    """The student of the run in `folder`, with its tokenizer or image processor; returns the commit's url."""
    return push_to_hub(student, repo_id, Card.of(folder, base=base), parts=(reader, Documents(folder)))
