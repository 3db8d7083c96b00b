"""Texts, or pairs of texts, of a file or a data set."""

import json
from pathlib import Path

from zsaq.foreign import UNMADE

COLUMNS = ("text", "text_pair")


def rows_of(source: str | Path) -> list[str] | list[tuple[str, str]]:
    """Of a text file (a text a line, a pair with a tab between), of JSON lines or Parquet with a column `text` (and
    `text_pair`), of a folder with train.parquet, or of a data set of the Hub.

    Raises ValueError for what holds no such text, ConnectionError where the Hub is not reached.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        path = path / "train.parquet"
    elif not path.exists():
        path = fetched(str(source))
    if not path.is_file():
        raise ValueError(f"{source} holds no {path.name}: give a file of texts (.txt, .jsonl, .parquet) or a data set")
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet

            table = pyarrow.parquet.read_table(path).to_pylist()
        elif path.suffix in (".jsonl", ".json"):
            table = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            table = [{"text": row} if isinstance(row, str) else row for row in table]
        else:
            lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            table = [dict(zip(COLUMNS, line.split("\t"), strict=False)) for line in lines]
    except ImportError:
        raise
    except (OSError, ValueError, *UNMADE) as error:
        raise ValueError(f"{path} cannot be read as texts ({type(error).__name__}: {error}): fetch it again") from error
    names = [name for name in COLUMNS if all(isinstance(row, dict) and isinstance(row.get(name), str) for row in table)]
    if not table or "text" not in names:
        raise ValueError(f"{path} holds no texts: give rows with a column text, or a text a line")
    return [(row["text"], row["text_pair"]) for row in table] if len(names) == 2 else [row["text"] for row in table]


def fetched(repo_id: str) -> Path:
    """The train.parquet of a data set of the Hub, from the cache or the Hub."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repo_id, "train.parquet", repo_type="dataset"))
    except LocalEntryNotFoundError as error:
        raise ConnectionError(f"{repo_id} is not here and the Hub was not reached: {error}") from error
    except (HFValidationError, HfHubHTTPError) as error:
        raise ValueError(f"{repo_id!r:.200} is neither a file or folder here nor a data set of the Hub") from error
