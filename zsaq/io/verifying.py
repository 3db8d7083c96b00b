"""The one verification that a folder goes through before anything is built of it, whoever reads it."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

from zsaq.atomic import former_of
from zsaq.form import read_json
from zsaq.io.checksums import MANIFEST, identity, read_manifest, regular_files, sealed_files
from zsaq.io.folder import (
    CONFIG,
    INDEX,
    WEIGHTS,
    bounded,
    check_config,
    check_foreign,
    largest_of,
    read_config,
    shards_of,
    weight_files,
)
from zsaq.quant.adapter import METHOD, ZsaqConfig
from zsaq.quant.guard import AGAIN, Header, read_header
from zsaq.run import RESULTS
from zsaq.sentence import Sentence

ADAPTERS: Final = ("adapter_config.json", "adapter_model.safetensors")
GENERATION, TOKENIZER = "generation_config.json", "tokenizer_config.json"
BESIDE: Final = (GENERATION, TOKENIZER, "preprocessor_config.json", "processor_config.json", "special_tokens_map.json")
VOCABULARIES: Final = ("vocab", "merges", "vocab_file", "merges_file", "spm_file", "source_spm", "target_spm")  # paths


@final
@dataclass(frozen=True)
class Verified:
    """A saved student's `folder`; `config`: its config.json; `header`: of its weights; `fingerprint`: what its manifest
    calls the model, None where there is none."""

    folder: Path
    config: dict[str, Any]
    header: Header
    fingerprint: str | None


def verified(source: str | Path, revision: str | None = None) -> Verified:
    """Where the files lie that `source`, a folder or Hub id, means, being what the manifest says, if there is one.

    From the Hub all is fetched at one commit: what the manifest lists and the results beside it, or without a manifest
    the config and the weights. Raises ValueError for everything that is no saved student of zsaq, for damaged,
    foreign and missing files, and for a config that asks for other code, other files or more than the weights hold.
    """
    source = os.path.expanduser(source)
    folder = Path(source)
    none = f"{source} is no folder or Hub id of a saved student"
    if not (folder / "config.json").exists() and (former := former_of(folder)):
        raise ValueError(
            f"no model lies at {folder}: a save was killed while it put one there, and {former} holds what lay there "
            f"before. Rename it to {folder.name}, or save the student again"
        )
    try:
        folder = folder if folder.is_dir() else fetched(str(source), revision)
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise ValueError(f"{none} ({error}); {AGAIN}") from error
    sealed = sealed_files(folder)
    if sealed is None:
        regular_files(folder)
    if any((folder / name).exists() for name in ADAPTERS):
        raise ValueError(f"{folder} holds an adapter, which reads another model than the one saved here: take it away")
    try:
        config = read_config(folder)
    except ValueError as error:
        raise ValueError(f"{none} ({error}); {AGAIN}") from error
    check_ours(config, source)
    check_beside(folder)
    header = read_header([str(path) for path in weight_files(folder, sealed)])
    try:
        check_config(config, largest_of(header))
        check_plan(config, header)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    return Verified(folder, config, header, None if sealed is None else identity(sealed))


def check_ours(config: Mapping[str, Any], source: str | Path) -> None:
    """Raises ValueError for the config of a model that zsaq has not saved, or whose plan is not whole."""
    if "quantization_config" not in config:
        raise ValueError(
            f"{source} is no folder or Hub id of a saved student: it has no quantization_config, so it is a float "
            "model: load it with transformers"
        )
    try:
        check_foreign(config)
        ZsaqConfig.from_dict(config["quantization_config"])
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def check_beside(folder: Path) -> None:
    """Raises ValueError for JSON beside the model that is none, for a tokenizer that reads other files and for a
    pooling that does not exist."""
    for name in BESIDE:
        if not (folder / name).exists():
            continue
        try:
            data = read_json(folder / name)
            check_config(data)
            others = [key for key in VOCABULARIES if isinstance(data.get(key), str)]
            if name == TOKENIZER and others:
                raise ValueError(f"its {others[0]} names another file: take it out")
        except ValueError as error:
            raise ValueError(f"{folder / name}: {error}; {AGAIN}") from error
    Sentence.of(folder)


def is_student(source: str | Path) -> bool:
    """Whether a folder or Hub id says of itself that zsaq has saved it; for what cannot be read, no."""
    source = os.path.expanduser(source)
    try:
        folder = Path(source) if Path(source).is_dir() else Path(hf_hub_download(str(source), CONFIG)).parent
        quantization = read_json(folder / CONFIG).get("quantization_config")
    except (OSError, ValueError, HfHubHTTPError):
        return False
    return isinstance(quantization, dict) and quantization.get("quant_method") == METHOD


@contextmanager
def bounded_by(source: str | Path) -> Iterator[None]:
    """Inside, no model is built of the folder `source` that asks for more than its weights hold.

    Of a Hub id nothing is known before transformers fetches it. Raises ValueError.
    """
    folder = Path(source)
    if not (folder / WEIGHTS).is_file() and not (folder / INDEX).is_file():
        yield
        return
    header = read_header([str(path) for path in weight_files(folder, None)])
    with bounded(header, source):
        yield


def fetched(source: str, revision: str | None) -> Path:
    """The folder of the Hub's cache with what a saved student there consists of. Raises as the Hub's client does."""
    try:
        first = Path(hf_hub_download(source, MANIFEST, revision=revision))
        names = [*read_manifest(first)["files"], RESULTS]
    except EntryNotFoundError:
        first = Path(hf_hub_download(source, CONFIG, revision=revision))
        check_ours(read_config(first.parent), source)  # before gigabytes of another model are fetched
        names = [WEIGHTS, INDEX, GENERATION]
    folder = first.parent
    for name in names:
        with suppress(EntryNotFoundError):  # whoever misses it names it
            hf_hub_download(source, name, revision=folder.name)
    if not (folder / MANIFEST).exists() and not (folder / WEIGHTS).exists() and (folder / INDEX).exists():
        for name in set(shards_of(folder / INDEX).values()):
            with suppress(EntryNotFoundError):
                hf_hub_download(source, name, revision=folder.name)
    return folder


def check_plan(config: Mapping[str, Any], header: Header) -> None:
    """Raises ValueError for a plan of more modules than the weights have tensors."""
    modules = config["quantization_config"]["modules"]
    if len(modules) > len(header):
        raise ValueError(f"its plan names {len(modules):,} modules, its weights are {len(header):,} tensors; {AGAIN}")
