"""Which bytes a saved model consists of: `zsaq_manifest.json` lists the size and sha256 of every file that is loaded.

    {"format_version": 1, "zsaq": version, "torch": version, "transformers": version,
     "files": {"config.json": {"sha256": 64 hex digits, "size": bytes}, ...}}

Documents (`DOCUMENTS`: what people read and no loader does) are not listed: they may come, go and change. Anything else
that is missing, changed or foreign is refused until `seal` is called again.
"""

import hashlib
import json
import os
import re
import uuid
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

MANIFEST: Final = "zsaq_manifest.json"
MANIFEST_VERSION: Final = 1
DOCUMENTS: Final = (".md", ".png", ".svg", ".jpg", ".jpeg", ".html", ".pdf", ".csv", ".yaml", ".yml")
PACKAGES: Final = ("zsaq", "torch", "transformers")
LARGEST: Final = 2**24  # bytes of a manifest: far above a hundred thousand files
FETCH: Final = "fetch the files again; if you changed them yourself, run zsaq.seal on the folder"


def seal(folder: str | Path) -> Path:
    """Write the manifest of `folder` as it is now, atomically, and give its path.

    Raises ValueError if there is no folder or nothing to seal in it, and for links that lead out of it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"{root} is no folder; give the folder of a saved model")
    files = {name: {"sha256": sha256(path), "size": path.stat().st_size} for name, path in sealable(root).items()}
    if "config.json" not in files:
        raise ValueError(f"{root} has no config.json, so it holds no saved model; give the folder of one")
    data = {"format_version": MANIFEST_VERSION, **{name: version(name) for name in PACKAGES}, "files": files}
    target = root / MANIFEST
    partial = root / f".{MANIFEST}.{uuid.uuid4().hex}"
    try:
        with partial.open("w", encoding="utf-8") as out:
            json.dump(data, out, indent=1)
            out.write("\n")
            out.flush()
            os.fsync(out.fileno())
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def check(folder: str | Path) -> dict[str, Any]:
    """The manifest of `folder`, whose files were found to be what it says.

    Raises ValueError that names the first file which is missing, changed or foreign, or what is wrong with the
    manifest, and the remedy.
    """
    root = Path(folder)
    manifest = read_manifest(root / MANIFEST)
    wanted, found = manifest["files"], sealable(root)
    for name, known in wanted.items():
        if name not in found:
            raise ValueError(f"{root}: {name} is missing, {MANIFEST} lists it; {FETCH}")
        size = found[name].stat().st_size
        if size != known["size"]:
            raise ValueError(f"{root}: {name} has {size} bytes, {MANIFEST} says {known['size']}; {FETCH}")
    if foreign := [name for name in found if name not in wanted]:
        raise ValueError(
            f"{root}: {foreign[0]} is foreign, {MANIFEST} does not list it; take it away, or if you added it yourself, "
            f"run zsaq.seal on the folder (only documents may be added freely: {' '.join(DOCUMENTS)})"
        )
    for name, known in wanted.items():
        if (digest := sha256(found[name])) != known["sha256"]:
            raise ValueError(
                f"{root}: {name} has the sha256 {digest[:12]}..., {MANIFEST} says {known['sha256'][:12]}...; {FETCH}"
            )
    return manifest


def read_manifest(path: Path) -> dict[str, Any]:
    """A manifest that nobody has checked yet, its form checked. Raises ValueError for everything else."""
    wrong = f"{path} is no manifest of zsaq"
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it has {path.stat().st_size} bytes, more than {LARGEST}")
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{wrong} ({error}); {FETCH}") from error
    keys = {"format_version", "files", *PACKAGES}
    if not isinstance(data, dict) or set(data) != keys:
        raise ValueError(f"{wrong}: its keys are not {sorted(keys)}; {FETCH}")
    if type(data["format_version"]) is not int or data["format_version"] != MANIFEST_VERSION:
        raise ValueError(
            f"{wrong} that this version reads: format_version is {data['format_version']!r:.40}, not "
            f"{MANIFEST_VERSION}; upgrade zsaq, or run zsaq.seal on the folder"
        )
    if not all(isinstance(data[name], str) for name in PACKAGES):
        raise ValueError(f"{wrong}: the versions of {', '.join(PACKAGES)} must be texts; {FETCH}")
    if not isinstance(data["files"], dict) or "config.json" not in data["files"]:
        raise ValueError(f"{wrong}: files must be an object and name config.json; {FETCH}")
    for name, known in data["files"].items():
        if not plain(name):
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
    return data


def plain(name: str) -> bool:
    """Whether a name is a relative path that stays where it starts, the same on every system."""
    parts = name.split("/")
    return name.isprintable() and not set(name) & set('\\:*?"<>|') and not {"", ".", ".."} & set(parts)


def sealable(root: Path) -> dict[str, Path]:
    """The files below `root` that a manifest lists, by sorted relative name; hidden ones belong to git and caches.

    Raises ValueError for what is neither a file nor a folder and for links that lead out of `root`. A snapshot of the
    Hub's cache links into the blobs beside it, which is allowed.
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
        for name in names:
            path = Path(folder, name)
            if name.startswith(".") or path.suffix.lower() in DOCUMENTS or path == root / MANIFEST:
                continue
            if not path.is_file():
                raise ValueError(f"{path} is no regular file; take it away")
            files[path.relative_to(root).as_posix()] = path
    return dict(sorted(files.items()))


def sha256(path: Path) -> str:
    """Hex digits of a file's sha256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
