"""What travels with a student, beside its weights: `model.zsaq`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from zsaq.io.checksums import fingerprint, mismatch
from zsaq.run import RESULTS, Results


@final
@dataclass(frozen=True)
class Record:
    """`results`: of the run that made the model, None where none are known; `problem`: why those that lie in the folder
    were not taken; `parts`: tokenizer or image processor; `files`: a folder with what the run logged and drew."""

    results: Results | None = None
    parts: tuple[Any, ...] = ()
    files: Path | None = None
    problem: str | None = None


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
    if not (folder / RESULTS).exists():
        return Record()
    try:
        return Record(read_results(folder, model))
    except ValueError as error:
        return Record(problem=str(error))
