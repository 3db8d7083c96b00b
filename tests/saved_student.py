"""A saved student with its manifest: made once for a test file, a copy for each test."""

import shutil
from pathlib import Path

import pytest

from students import CONFIGS, student_of
from zsaq.io.saving import save


class Vocabulary:
    """Stands for a tokenizer."""

    def __init__(self, text: str = "{}") -> None:
        self.text = text

    def save_pretrained(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text(self.text)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(student_of("bert", CONFIGS["w2a8"]), tmp_path_factory.mktemp("saved") / "model", Vocabulary())


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
