"""Shards: an index names plain files that lie beside it, and are sealed with it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from students import CONFIGS, bits, one_thread, student_of
from zsaq.io.checksums import write_checksums
from zsaq.io.folder import INDEX
from zsaq.io.loading import load
from zsaq.io.saving import save

__all__ = ["one_thread"]

Json = dict[str, Any]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(student_of("bert", CONFIGS["w2a8"]), tmp_path_factory.mktemp("saved") / "bert")


def sharded(student: Path, folder: Path) -> Path:
    load(student).save_pretrained(folder, max_shard_size="5KB")
    return folder


def test_shards_are_read_by_their_plain_names(student: Path, tmp_path: Path) -> None:
    folder = sharded(student, tmp_path / "m")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert torch.equal(bits(load(folder)), bits(load(student)))
    write_checksums(folder)
    assert torch.equal(bits(load(folder)), bits(load(student)))


NAMES = (
    *(
        "../elsewhere.safetensors",
        "/tmp/elsewhere.safetensors",
        "sub/one.safetensors",
        "..",
        "",
        ".",
        "~/a.safetensors",
    ),
    *(".hidden.safetensors", "C:\\a.safetensors", "a\n.safetensors", "weights.bin", "weights.pt", None, 3, [], {}),
)


@pytest.mark.parametrize("name", NAMES, ids=repr)
@pytest.mark.parametrize("sealed", [False, True])
def test_an_index_names_plain_files_and_nothing_else(sealed: bool, name: Any, student: Path, tmp_path: Path) -> None:
    folder = sharded(student, tmp_path / "m")
    index = json.loads((folder / INDEX).read_text())
    first = sorted(set(index["weight_map"].values()))[0]
    for place in (
        tmp_path / "elsewhere.safetensors",
        folder / "sub" / "one.safetensors",
        folder / ".hidden.safetensors",
    ):
        place.parent.mkdir(exist_ok=True)
        shutil.copy(folder / first, place)
    index["weight_map"] = {key: name if file == first else file for key, file in index["weight_map"].items()}
    (folder / INDEX).write_text(json.dumps(index))
    if sealed:
        write_checksums(folder)
    with pytest.raises(ValueError, match=r"cannot be followed: .* is no plain name of a safetensors file"):
        load(folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda i: i.pop("weight_map"), "it has no metadata and weight_map"),
        (lambda i: i.pop("metadata"), "it has no metadata and weight_map"),
        (lambda i: i.update(weight_map=[]), "it has no metadata and weight_map"),
        (lambda i: i.update(weight_map={}), "it has no metadata and weight_map"),
        (lambda i: i["weight_map"].update(x="absent.safetensors"), r"names absent\.safetensors, which is not in"),
    ],
)
def test_an_index_of_another_form_is_refused(spoil: Callable[[Json], Any], message: str, student: Path, tmp_path: Path):
    folder = sharded(student, tmp_path / "m")
    index = json.loads((folder / INDEX).read_text())
    spoil(index)
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=message):
        load(folder)
