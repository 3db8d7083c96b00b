"""What is published in tests: a student, its card and its results, to the Hub of hub_server.py."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hub_client import turned
from hub_server import TOKEN, Hub
from language_toys import wordpiece
from toys import bert
from zsaq import Card, QuantConfig, push_to_hub, quantize_model
from zsaq.io.saving import save
from zsaq.report.card import MetricScore
from zsaq.run import Base, Data, Results, Row

ID = "tester/tiny-w2a8"
CARD = Card(
    Base("tiny", {"license": "apache-2.0"}, id="someone/tiny", revision="0" * 40),
    "zsaq", True, (0, 1), Data("GLUE sst2", "nyu-mll/glue", "sst2", "validation"),
    (MetricScore("teacher", "accuracy", (0.9, 0.9)), MetricScore("zsaq", "accuracy", (0.8, 0.9))), base_bytes=400_000,
)  # fmt: skip
RESULTS = Results("someone/tiny", "zsaq", QuantConfig.parse("w2a8"), 0, True, "random tokens", (Row("zsaq"),))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with turned(monkeypatch) as server:
        yield server


@pytest.fixture(scope="module")
def student() -> Any:
    torch.manual_seed(0)
    teacher = bert()
    teacher.resize_token_embeddings(len(wordpiece()))
    return quantize_model(teacher, QuantConfig.parse("w2a8"))


@pytest.fixture
def folder(student: Any, tmp_path: Path) -> Path:
    save(student, tmp_path / "saved", wordpiece())
    return tmp_path / "saved"


def state(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def push(source: Any, **options: Any) -> str:
    return push_to_hub(source, ID, CARD, token=TOKEN, **options)
