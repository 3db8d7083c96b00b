"""What travels with a student, beside its weights: `model.zsaq`."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from zsaq.io.checksums import TEMPLATES, added, fingerprint, mismatch, regular_files
from zsaq.run import RESULTS, Results
from zsaq.sentence_files import FOLDER


@final
@dataclass(frozen=True)
class Record:
    """`results`: of the run that made the model, None where none are known; `problem`: why those that lie in the folder
    were not taken; `parts`: tokenizer or image processor; `files`: a folder with what the run logged and drew."""

    results: Results | None = None
    parts: tuple[Any, ...] = ()
    files: Path | None = None
    problem: str | None = None


@final
@dataclass(frozen=True)
class Beside:
    """The tokenizer or image processor that lay beside a loaded model: its files, which are copied as they are."""

    folder: Path
    names: tuple[str, ...]

    @classmethod
    def of(cls, folder: Path) -> "Beside":
        return cls(folder, tuple(name for name in regular_files(folder) if is_beside(name)))

    def save_pretrained(self, target: Path) -> None:
        """Raises ValueError where the model's folder has lost one of the files."""
        for name in self.names:
            if not (self.folder / name).is_file():
                raise ValueError(
                    f"{self.folder / name}, which lay beside the model when it was loaded, is gone: load the model "
                    "again, or give its tokenizer or processor, zsaq.save(model, folder, tokenizer)"
                )
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(self.folder / name, target / name)


def is_beside(name: str) -> bool:
    """Whether a loader's file, by its relative name, is a tokenizer's, a processor's or sentence-transformers', and not
    the model's own."""
    own = name.endswith((".safetensors", ".safetensors.index.json")) or name in (
        "config.json",
        "generation_config.json",
    )
    folder = name.rpartition("/")[0]
    return not own and not added(name) and (folder in ("", TEMPLATES) or bool(FOLDER.fullmatch(folder)))


def read_results(folder: Path, model: str | None = None) -> Results:
    """The results in `folder`, which are those of the model that lies there, if one does.

    `model`: its fingerprint, where it is known. Raises ValueError for none, and as `Results.read` does, and for results
    of another model than lies there now.
    """
    results = Results.read(folder)
    if (folder / "config.json").is_file():
        there = fingerprint(folder) if model is None else model
        if problem := mismatch(results.fingerprint, there):
            raise ValueError(f"{folder / RESULTS} {problem}")
    return results


def record_of(folder: Path, model: str | None = None) -> Record:
    """What lies beside the model in `folder`; results that cannot be read, or are of another model, are a `problem`."""
    if not folder.is_dir():  # a Hub id without a manifest
        return Record()
    beside, results, problem = Beside.of(folder), None, None
    if (folder / RESULTS).exists():
        try:
            results = read_results(folder, model)
        except ValueError as error:
            problem = str(error)
    return Record(results, (beside,) if beside.names else (), folder, problem)
