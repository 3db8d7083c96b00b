"""--push_to_hub of the recipes: asked for early, one way out, and real data leaves its trace on the card."""

import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

sys.path.insert(0, str(Path(__file__).parent.parent / "recipes"))

from publishing import base_of, publish, recipe, watch

from hub_client import turned
from hub_server import TOKEN, Hub
from language_toys import wordpiece
from toys import bert
from zsaq import QuantConfig, quantize_model
from zsaq.report.card_text import NO_DATA, WITH_DATA

# huggingface_hub 2.4 sends a file as `data=`, which httpx2 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
W2 = QuantConfig.parse("w2a8")


class Toy:
    """Stands in for a job."""

    name: str = "toy"
    real: Any = staticmethod(lambda: "real text")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with turned(monkeypatch) as made:
        yield made


def asked(**change: Any) -> Namespace:
    return Namespace(**({"push_to_hub": "tester/tiny", "license": "mit"} | change))


@pytest.mark.parametrize("oracle", [False, True])
def test_a_run_is_published_and_says_whether_it_read_real_data(hub: Hub, tmp_path: Path, oracle: bool) -> None:
    base = base_of(asked(), None)
    job = Toy()
    reads = watch(job)
    if oracle:
        assert job.real() == "real text"
    rows = [{"name": name, "score": 0.5, "bytes": 1000} for name in ("teacher", "some")]
    results = {
        "rows": rows, "method": "some", "zero_shot": not reads, "metrics": {"accuracy": "score"},
        "config": W2.to_dict(), "seed": 0, "data": {"name": "toy"}, "recipe": recipe(__file__),
        "arguments": {"output_dir": str(tmp_path)},
    }  # fmt: skip
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "pictures").mkdir()
    for name in ("curves.png", "pictures/dream.png", "pictures/notes.pkl"):
        (tmp_path / name).write_bytes(b"\x89PNG\0")
    assert base is not None
    url = publish(quantize_model(bert(), W2), wordpiece(), tmp_path, base, "tester/tiny")
    (commit,) = hub.commits("tester/tiny")
    assert url.endswith(commit.oid)
    assert {"curves.png", "pictures/dream.png", "results.json", "tokenizer.json"} <= set(commit.files)
    assert not any(name.endswith(".pkl") for name in commit.files)
    assert str(tmp_path).encode() not in b"".join(commit.files.values()), "no path of this machine"
    card = ModelCard(commit.files["README.md"].decode())
    assert card.data.to_dict()["zsaq"]["zero_shot"] is not oracle
    assert ((NO_DATA in card.text), (WITH_DATA in card.text)) == (not oracle, oracle)


def test_what_would_fail_after_hours_fails_first(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert base_of(asked(push_to_hub=None, license=None), None) is None and hub.requests == []
    with pytest.raises(ValueError, match="needs --license"):
        base_of(asked(license=None), None)
    bert().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="names no licence"):
        base_of(asked(license=None), str(tmp_path))
    with pytest.raises(ValueError, match="no repository id"):
        base_of(asked(push_to_hub="a b/c"), None)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(ValueError, match="does not know this token"):
        base_of(asked(), None)
