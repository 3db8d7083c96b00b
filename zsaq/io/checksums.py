"""Which bytes a saved model consists of: `zsaq_manifest.json` lists the size and sha256 of every file that is loaded.

    {"format_version": 1, "zsaq": version, "torch": version, "transformers": version,
     "files": {"config.json": {"sha256": 64 hex digits, "size": bytes}, ...}}

`zsaq.save` writes it, once, when the model and the tokenizer or image processor beside it are written. Whatever of
these is missing or changed is refused, and so is a file in their place that a loader would read too. What comes later
(`ADDED`, documents, folders of exports) is no part of the model; it names the model that it belongs to by the
model's `fingerprint`, and is refused beside another.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from zsaq.atomic import write_text
from zsaq.form import read_json

MANIFEST: Final = "zsaq_manifest.json"
MANIFEST_VERSION: Final = 1
DOCUMENTS: Final = (".md", ".png", ".svg", ".jpg", ".jpeg", ".html", ".pdf", ".csv", ".yaml", ".yml", ".jsonl")
ADDED: Final = ("results.json", "parity.json", "bench.json")
TEMPLATES: Final = "additional_chat_templates"  # the one folder below that tokenizers read
PACKAGES: Final = ("zsaq", "torch", "transformers")
FETCH: Final = "fetch the files again, or save the student again with zsaq.save"


def write_checksums(folder: Path) -> Path:
    """The manifest of all that a loader reads in `folder`, where a model has just been saved; its path."""
    files = {name: entry(path) for name, path in regular_files(folder).items() if not added(name)}
    assert "config.json" in files, f"{folder} holds no model"
    data = {"format_version": MANIFEST_VERSION, **{name: version(name) for name in PACKAGES}, "files": files}
    return write_text(folder / MANIFEST, json.dumps(data, indent=1) + "\n")


def check_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of `folder`, whose files are what it says.

    Raises ValueError that names the first file which is missing, changed or foreign, or what is wrong with the
    manifest, and the remedy.
    """
    root = Path(folder)
    manifest = read_manifest(root / MANIFEST)
    wanted, present = manifest["files"], regular_files(root)
    check_sizes(root, MANIFEST, wanted, present)
    read = {"", TEMPLATES, *(name.rpartition("/")[0] for name in wanted)}  # folders that a loader looks into
    if foreign := [n for n in present if n not in wanted and not added(n) and n.rpartition("/")[0] in read]:
        raise ValueError(
            f"{root}: {foreign[0]} is foreign, {MANIFEST} does not list it and a loader may read it; take it away "
            f"(beside a model may lie {', '.join(ADDED)}, folders, and documents: {' '.join(DOCUMENTS)})"
        )
    check_hashes(root, MANIFEST, wanted, present)
    return manifest


def check_sizes(root: Path, listing: str, wanted: Mapping[str, Any], present: Mapping[str, Path]) -> None:
    """Raises ValueError for the first file of `listing` that is missing or has another size."""
    for name, known in wanted.items():
        if name not in present:
            raise ValueError(f"{root}: {name} is missing, {listing} lists it; {FETCH}")
        size = present[name].stat().st_size
        if size != known["size"]:
            raise ValueError(f"{root}: {name} has {size} bytes, {listing} says {known['size']}; {FETCH}")


def check_hashes(root: Path, listing: str, wanted: Mapping[str, Any], present: Mapping[str, Path]) -> None:
    """Raises ValueError for the first file that has changed."""
    for name, known in wanted.items():
        if (digest := sha256(present[name])) != known["sha256"]:
            raise ValueError(
                f"{root}: {name} has the sha256 {digest[:12]}..., {listing} says {known['sha256'][:12]}...; {FETCH}"
            )


def sealed_files(folder: str | Path) -> dict[str, Any] | None:
    """What the manifest of `folder` lists, being so; None where there is no manifest. Raises as `check_manifest`."""
    return check_manifest(folder)["files"] if os.path.lexists(Path(folder) / MANIFEST) else None


def identity(files: Mapping[str, Mapping[str, Any]]) -> str:
    """What a model is called by what is added to it: sha256 over the names and hashes of its config and weights."""
    own = sorted(name for name in files if "/" not in name and (name == "config.json" or name.endswith(".safetensors")))
    text = "".join(f"{name} {files[name]['sha256']}\n" for name in own)
    return hashlib.sha256(text.encode()).hexdigest()


def fingerprint(folder: str | Path) -> str:
    """The `identity` of the model that lies in `folder` now, read from its files and not from its manifest."""
    paths = [path for path in Path(folder).iterdir() if path.name == "config.json" or path.suffix == ".safetensors"]
    return identity({path.name: {"sha256": sha256(path)} for path in paths})


def mismatch(known: Any, there: str) -> str | None:
    """Why what names the model `known` does not belong to the model `there`; None if it does."""
    if known == there:
        return None
    if known is None:
        return "does not say which model it belongs to: make it again"
    return (
        f"belongs to another model ({known!r:.14}...) than lies here now ({there[:12]}...): remove it, or make it again"
    )


def read_manifest(path: Path) -> dict[str, Any]:
    """A manifest that nobody has checked yet, its form checked. Raises ValueError for everything else."""
    wrong = f"{path} is no manifest of zsaq"
    try:
        data = read_json(path)
    except ValueError as error:
        raise ValueError(f"{wrong} ({error}); {FETCH}") from error
    keys = {"format_version", "files", *PACKAGES}
    if set(data) != keys:
        raise ValueError(f"{wrong}: its keys are not {sorted(keys)}; {FETCH}")
    if type(data["format_version"]) is not int or data["format_version"] != MANIFEST_VERSION:
        raise ValueError(
            f"{wrong} that this version reads: format_version is {data['format_version']!r:.40}, not "
            f"{MANIFEST_VERSION}; upgrade zsaq, or save the student again"
        )
    if not all(isinstance(data[name], str) for name in PACKAGES):
        raise ValueError(f"{wrong}: the versions of {', '.join(PACKAGES)} must be texts; {FETCH}")
    if "config.json" not in checked_entries(data["files"], wrong):
        raise ValueError(f"{wrong}: files must name config.json; {FETCH}")
    return data


def checked_entries(files: Any, wrong: str) -> dict[str, dict[str, Any]]:
    """Sizes and hashes by name, of JSON that nobody has checked. Raises ValueError that begins with `wrong`."""
    if not isinstance(files, dict):
        raise ValueError(f"{wrong}: files must be an object; {FETCH}")
    for name, known in files.items():
        if not is_plain_path(name):
            raise ValueError(f"{wrong}: {name!r:.200} is no plain relative path; {FETCH}")
        if (
            not isinstance(known, dict)
            or set(known) != {"sha256", "size"}
            or not isinstance(known["sha256"], str)
            or not re.fullmatch("[0-9a-f]{64}", known["sha256"])
            or type(known["size"]) is not int
            or not 0 <= known["size"] < 2**63
        ):
            raise ValueError(f"{wrong}: {name} is {known!r:.200}, not 64 hex digits of sha256 and a size; {FETCH}")
    return files


def is_plain_path(name: str) -> bool:
    """Whether a name is a relative path that stays where it starts, the same on every system."""
    parts = name.split("/")
    return name.isprintable() and not set(name) & set('\\:*?"<>|') and not {"", ".", ".."} & set(parts)


def added(name: str) -> bool:
    """Whether a file is no part of the model, by its relative name: a document, or what is made of a model later."""
    return name in ADDED or Path(name).suffix.lower() in DOCUMENTS


def regular_files(root: Path) -> dict[str, Path]:
    """The files below `root` by sorted relative name, without the manifest; hidden ones belong to git and caches.

    Raises ValueError for what is neither a file nor a folder, for links that lead out of `root` and for those to
    folders, whose files would not be listed. A snapshot of the Hub's cache links into the blobs beside it, which is
    allowed.
    """
    cache = root.absolute().parent.parent
    inside = [root.resolve()]
    if root.absolute().parent.name == "snapshots" and (cache / "blobs").is_dir():
        inside.append((cache / "blobs").resolve())
    files = {}
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in [*names, *folders]:
            path = Path(folder, name)
            if path.is_symlink() and not any(path.resolve().is_relative_to(place) for place in inside):
                raise ValueError(f"{path} is a link that leads out of the folder; put a copy of the file in its place")
        if links := [path for name in folders if (path := Path(folder, name)).is_symlink()]:
            raise ValueError(
                f"{links[0]} is a link to a folder; put a copy of the folder in its place, or take it away"
            )
        for name in names:
            path = Path(folder, name)
            if name.startswith(".") or path == root / MANIFEST:
                continue
            if not path.is_file():
                raise ValueError(f"{path} is no regular file; take it away")
            files[path.relative_to(root).as_posix()] = path
    return dict(sorted(files.items()))


def entry(path: Path) -> dict[str, Any]:
    return {"sha256": sha256(path), "size": path.stat().st_size}


def sha256(path: Path) -> str:
    """Hex digits of a file's sha256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
