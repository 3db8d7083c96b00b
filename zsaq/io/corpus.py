"""Synthetic text as it is kept: a Parquet file, a card, and a hash, which `datasets` loads and every method takes."""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, final

from zsaq.atomic import atomic_folder, check_room
from zsaq.foreign import UNMADE
from zsaq.form import read_json
from zsaq.io.corpus_card import card, written
from zsaq.io.target import placed

FILE: Final = "train.parquet"
FACTS: Final = "corpus.json"
COLUMNS: Final = ("text", "text_pair")
READ: Final = (*COLUMNS, "fluency")
Rows = Sequence[str] | Sequence[tuple[str, ...]] | Sequence[str | tuple[str, ...]]


@final
@dataclass(frozen=True)
class Corpus:
    """Texts or pairs of texts. `fluency`: of each row, the mean log probability of its tokens for its writer, in nats;
    () where nobody knows. `facts`: how it was written (generator, prompts, temperature, seed, ...); text of which they
    name no generator is of unknown origin, and nobody may call it zero-shot.

    Raises ValueError for no row, an empty text and rows of several forms.
    """

    rows: Rows
    fluency: tuple[float, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.rows, str) or not isinstance(self.rows, Sequence) or not self.rows:
            raise ValueError(f"a corpus of {self.rows!r:.80} holds no text; give a list of texts, or of pairs of texts")
        pairs = not isinstance(self.rows[0], str)
        for row in self.rows:
            parts = tuple(row) if pairs and isinstance(row, tuple | list) else (row,)
            if len(parts) != 1 + pairs or not all(isinstance(part, str) and part.strip() for part in parts):
                raise ValueError(
                    f"a row of the corpus is {row!r:.120}; give texts that are not empty, or pairs of them"
                )
        numbers = all(type(value) in (int, float) and math.isfinite(value) for value in self.fluency)
        if self.fluency and (len(self.fluency) != len(self.rows) or not numbers):
            raise ValueError(
                f"fluency has {len(self.fluency)} values for {len(self.rows)} rows, or some that are not finite; "
                "give a number for each row, or none at all"
            )

    @property
    def text_pair(self) -> bool:
        return not isinstance(self.rows[0], str)

    @property
    def sha256(self) -> str:
        """Of the texts alone, in their order."""
        total = hashlib.sha256()
        for row in self.rows:
            total.update(json.dumps(row if isinstance(row, str) else list(row)).encode() + b"\n")
        return total.hexdigest()

    @property
    def zero_shot(self) -> bool:
        """Whether it says that a generator wrote it."""
        return written(self.facts)

    @classmethod
    def of(cls, source: "Corpus | str | Path | Rows") -> "Corpus":
        """A corpus as it is, a list of texts, or what a path or id holds. Raises ValueError as `load` does, and for
        anything else."""
        if isinstance(source, Corpus):
            return source
        if isinstance(source, str | Path):
            return cls.load(source)
        if not isinstance(source, Iterable) or isinstance(source, Mapping):
            raise ValueError(f"corpus is {source!r:.80}; give a path, an id on the Hub, or a list of texts or of pairs")
        return cls([row if isinstance(row, str | Mapping) else pair_of(row) for row in source])

    @classmethod
    def load(cls, source: str | Path) -> "Corpus":
        """Of a folder or Hub id that `save` wrote, or of a file of texts: Parquet, JSON lines or plain text, a text a
        line, a pair with a tab between.

        Raises ValueError for what holds no such text, and for texts that are not those that were written there;
        ConnectionError where the Hub is not reached.
        """
        path = Path(os.path.expanduser(source))
        if path.is_file():
            return cls(read_rows(path)[0])
        folder = path if path.is_dir() else fetched(str(source))
        if not (folder / FILE).is_file():
            raise ValueError(
                f"{source} holds no {FILE}: give what `zsaq synthesize` wrote, or a file of texts (.parquet, .jsonl, "
                ".txt)"
            )
        rows, fluency = read_rows(folder / FILE)
        facts = read_json(folder / FACTS) if (folder / FACTS).is_file() else {}
        if not isinstance(facts, dict):
            raise ValueError(f"{folder / FACTS} holds no facts; fetch it again, or take it away")
        corpus = cls(rows, fluency, facts)
        if facts and facts.get("sha256") != corpus.sha256:
            raise ValueError(
                f"the texts in {source} are not those that {FACTS} tells of (sha256 {corpus.sha256[:12]}): fetch them "
                f"again, or take {FACTS} away if they were changed on purpose; they are then of unknown origin"
            )
        return corpus

    def save(self, folder: str | Path) -> Path:
        """`train.parquet`, `corpus.json` and a card, as one, which `datasets.load_dataset` reads. Raises ValueError for
        a folder that holds something else, ImportError without pyarrow (the extra "eval")."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        target = self.check_target(folder)
        columns = [list(c) for c in zip(*(((r,) if isinstance(r, str) else r) for r in self.rows), strict=True)]
        table: dict[str, Any] = dict(zip(COLUMNS, columns, strict=False))
        if self.fluency:
            table["fluency"] = pa.array(self.fluency, pa.float32())
        with atomic_folder(target) as place:
            place.mkdir(exist_ok=True)
            pq.write_table(pa.table(table), place / FILE)
            facts = {**self.facts, "rows": len(self.rows), "sha256": self.sha256}
            (place / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
            (place / "README.md").write_text(card(facts), encoding="utf-8")
        return target

    @staticmethod
    def check_target(folder: str | Path) -> Path:
        """Where a corpus may be saved: a new folder, an empty one, or one of a corpus; its path, links resolved. Raises
        ValueError for anything else, and where nothing can be written."""
        target = placed(folder)
        there = {each.name for each in target.iterdir()} if target.is_dir() else set()
        if target.is_file() or not there <= {FILE, FACTS, "README.md"} or (there and not has_facts(target)):
            raise ValueError(f"{target} holds something else than a corpus; give a new folder")
        check_room(target)
        return target

    def push_to_hub(self, repo_id: str, *, private: bool | None = None) -> str:
        """Publish it as a data set; its address. Raises ValueError for a generator whose licence nobody knows."""
        import tempfile

        from huggingface_hub import HfApi

        if not self.facts.get("license"):
            raise ValueError("the generator's licence is not known, so its text is not published: give license=")
        api = HfApi()
        with tempfile.TemporaryDirectory(prefix="zsaq-") as temporary:
            folder = self.save(Path(temporary) / "corpus")
            url = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
            api.upload_folder(repo_id=repo_id, repo_type="dataset", folder_path=folder, commit_message="Synthetic text")
        return str(url)


def pair_of(row: Any) -> Any:
    """A row that is a list or an array as the pair that it is."""
    return tuple(row) if isinstance(row, Iterable) else row


def has_facts(folder: Path) -> bool:
    """Whether `save` has written the folder: anybody calls files README.md and train.parquet."""
    with suppress(ValueError):
        return "sha256" in read_json(folder / FACTS)
    return False


def fetched(repo_id: str) -> Path:
    """The folder of a data set of the Hub, from the cache or the Hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo_id, repo_type="dataset", allow_patterns=[FILE, FACTS]))
    except LocalEntryNotFoundError as error:
        raise ConnectionError(f"{repo_id} is not here and the Hub was not reached: {error}") from error
    except (HFValidationError, HfHubHTTPError) as error:
        raise ValueError(
            f"{repo_id!r:.200} is neither a folder or file here nor a data set of the Hub: give one of them"
        ) from error


def read_rows(path: Path) -> tuple[Rows, tuple[float, ...]]:
    """Texts or pairs, and their fluency where it is told. Raises ValueError for a file of another form, and for one
    whose lines are of several, with the first that is of another."""
    lines, found = list[tuple[int, dict[str, Any]]](), dict[str, list[Any]]()
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            found = pq.read_table(path).to_pydict()
        else:  # a text may hold whatever else than "\n" Unicode counts as the end of a line
            texts = enumerate(path.read_text(encoding="utf-8").split("\n"), 1)
            lines = [(number, line_of(text, path.suffix)) for number, text in texts if text.strip()]
            found = {name: [] for name in lines[0][1]}
    except (OSError, ValueError, *UNMADE) as error:
        raise ValueError(f"{path} cannot be read as texts ({type(error).__name__}: {error}): fetch it again") from error
    for number, line in lines:
        if line.keys() != found.keys() or "more" in line:
            raise ValueError(
                f"line {number} of {path} has {' and '.join(line)}, the first {' and '.join(found)}: give each line a "
                "text, or each a pair (text_pair in JSON, else one tab between)"
            )
        for name, value in line.items():
            found[name].append(value)
    if "text" not in found:
        raise ValueError(f"{path} has no column text, only {list(found)}: rename the one that holds the texts")
    pairs = "text_pair" in found
    rows = list(zip(found["text"], found["text_pair"], strict=True)) if pairs else found["text"]
    return rows, tuple(found.get("fluency", ()))


def line_of(text: str, suffix: str) -> dict[str, Any]:
    """A row by its columns: of JSON those that are read, of plain text a third for what no row has."""
    if suffix not in (".jsonl", ".json"):
        return dict(zip((*COLUMNS, "more"), text.split("\t"), strict=False))
    row = json.loads(text)
    return {"text": row} if isinstance(row, str) else {name: row[name] for name in READ if name in row}
