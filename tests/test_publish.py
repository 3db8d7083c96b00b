"""Publishing against a Hub on loopback, with the real client: one commit, all or nothing, and back by repository id."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import HfApi, ModelCard

from hub_server import TOKEN, Commit, Hub
from language_toys import wordpiece
from publishing import CARD, ID, RESULTS, folder, hub, push, state, student
from toys import bert
from zsaq import QuantConfig, load, push_to_hub, quantize_model
from zsaq.io.checksums import MANIFEST
from zsaq.io.saving import save
from zsaq.quant.adapter import packed_state
from zsaq.run import Results

__all__ = ["folder", "hub", "student"]

# huggingface_hub 2.4 sends a file as `data=`, which httpx2 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
LOADER = """
import sys, torch, zsaq
from transformers import AutoModelForSequenceClassification as Auto, AutoTokenizer
wanted = torch.tensor(eval_of := [[float.fromhex(x) for x in row.split()] for row in sys.argv[2].split(";")])
with torch.no_grad():
    inputs = AutoTokenizer.from_pretrained(sys.argv[1])(["the film is good"], return_tensors="pt")
    for model in (zsaq.load(sys.argv[1]), Auto.from_pretrained(sys.argv[1])):
        assert torch.equal(model(**inputs).logits, wanted), (model(**inputs).logits, wanted)
assert zsaq.load(sys.argv[1]).zsaq.results.student.bytes > 0
"""


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


def test_a_student_is_pushed_in_one_commit_and_loads_by_its_id(hub: Hub, student: Any, tmp_path: Path) -> None:
    url = push(student, parts=(wordpiece(),), results=RESULTS, private=True)
    (commit,) = hub.commits(ID)
    assert url == f"{hub.url}/{ID}/commit/{commit.oid}" and hub.repositories[ID].private
    assert hub.objects, "the weights go through LFS"
    assert {"README.md", "model.safetensors", "config.json", "tokenizer.json", MANIFEST} <= set(commit.files)
    (results,) = (text for name, text in commit.files.items() if name.startswith(".eval_results/"))
    assert yaml.safe_load(results)[0]["dataset"] == {"id": "nyu-mll/glue", "task_id": "sst2"}
    card = ModelCard(commit.files["README.md"].decode())
    assert card.data.to_dict()["base_model"] == "someone/tiny" and f'zsaq.load("{ID}")' in card.text
    with torch.no_grad():
        logits = student(**wordpiece()(["the film is good"], return_tensors="pt")).logits
    wanted = ";".join(" ".join(float(x).hex() for x in row) for row in logits)
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", LOADER, ID, wanted], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_folder_and_a_student_give_the_same_files(hub: Hub, student: Any, folder: Path) -> None:
    before = state(folder)
    push(folder)
    push_to_hub(student, "tester/other", CARD, token=TOKEN, parts=(wordpiece(),))
    assert state(folder) == before
    one, two = hub.commits(ID)[0].files, hub.commits("tester/other")[0].files
    differ = {name for name in one if one[name] != two.get(name)}
    assert set(one) == set(two) and differ == {"README.md"}, "the card names its own repository"


def test_nothing_new_is_no_new_commit(hub: Hub, folder: Path) -> None:
    first = push(folder)
    assert push(folder) == first and len(hub.commits(ID)) == 1


@pytest.mark.parametrize("fault", ["500", "cut"])
@pytest.mark.parametrize("kind", ["lfs", "batch", "preupload", "commit"])
def test_a_push_that_breaks_off_changes_nothing_and_can_be_repeated(
    hub: Hub, folder: Path, kind: str, fault: Any, workshop: Path
) -> None:
    hub.create(ID)
    before = state(folder)
    hub.faults = {kind: fault}
    with pytest.raises(ConnectionError, match="push again"):
        push(folder)
    assert hub.commits(ID) == [] and state(folder) == before and not any(workshop.iterdir())
    hub.faults = {}
    push(folder)
    assert len(hub.commits(ID)) == 1 and state(folder) == before


def test_an_interrupted_push_leaves_nothing(
    hub: Hub, student: Any, workshop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: Any, **options: Any) -> None:
        assert any(workshop.iterdir())
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(HfApi, "create_commit", interrupt)
        push(student)
    assert hub.commits(ID) == [] and not any(workshop.iterdir())
    push(student)


def test_a_repository_that_moves_meanwhile_is_not_overwritten(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    branch, upload = hub.create(ID).branches["main"], HfApi.preupload_lfs_files

    def meanwhile(*args: Any, **options: Any) -> None:
        if len(branch) == 1:
            branch.append(Commit("f" * 40, {"README.md": b"theirs"}, "theirs"))
        upload(*args, **options)

    monkeypatch.setattr(HfApi, "preupload_lfs_files", meanwhile)
    with pytest.raises(ConnectionError, match="changed meanwhile"):
        push(folder)
    assert [commit.message for commit in hub.commits(ID)] == ["theirs"]


def test_a_lost_answer_makes_no_second_commit(hub: Hub, folder: Path) -> None:
    hub.faults = {"commit": "lost"}
    with pytest.raises(ConnectionError, match="push again"):
        push(folder)
    hub.faults = {}
    assert push(folder).endswith(hub.commits(ID)[0].oid) and len(hub.commits(ID)) == 1


def test_a_second_version_replaces_the_first_and_its_stale_files(hub: Hub, student: Any, folder: Path) -> None:
    (folder / "pictures").mkdir()
    for index in range(40):
        (folder / "pictures" / f"{index}.png").write_bytes(b"\x89PNG\r\n\x1a\n\0" + bytes([index]))
    push(folder)
    assert len(hub.commits(ID)) == 1, "one commit for many files too"
    hub.repositories[ID].branches["main"][-1].files[".gitignore"] = b"*.json"
    push(quantize_model(bert(), QuantConfig.parse("w4a8")))
    second = hub.commits(ID)[1]
    assert len(hub.commits(ID)) == 2 and {"pictures/0.png", "tokenizer.json", ".gitignore"} <= set(second.deleted)
    left = {".gitattributes", "README.md", "config.json", "model.safetensors", MANIFEST}
    assert {name for name in second.files if not name.startswith(".eval_results/")} == left
    assert "4-bit" in second.files["README.md"].decode() and b'"bits": 4' in second.files["config.json"]


def test_a_pull_request_leaves_the_branch_as_it_is(hub: Hub, folder: Path) -> None:
    hub.create("another/model")
    with pytest.raises(ValueError, match="create_pr"):
        push_to_hub(folder, "another/model", CARD, token=TOKEN)
    url = push_to_hub(folder, "another/model", CARD, token=TOKEN, create_pr=True)
    assert url.endswith("/another/model/discussions/1")
    assert hub.commits("another/model") == [] and len(hub.commits("another/model", "refs/pr/1")) == 1


def test_a_branch_is_pushed_to_and_must_be_there(hub: Hub, folder: Path) -> None:
    branches = hub.create(ID).branches
    with pytest.raises(ValueError, match="no such revision"):
        push(folder, revision="next")
    branches["next"] = list(branches["main"])
    push(folder, revision="next")
    assert hub.commits(ID) == [] and len(hub.commits(ID, "next")) == 1


def test_results_and_logs_travel_with_a_student(hub: Hub, student: Any, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "distill.jsonl").write_text('{"step": 1, "seconds": 0.5}\n')
    push(student, results=RESULTS, files=tmp_path / "run")
    assert Results.from_dict(json.loads(hub.commits(ID)[0].files["results.json"])).student.bytes > 0  # type: ignore[operator]
    assert hub.commits(ID)[0].files["distill.jsonl"] == b'{"step": 1, "seconds": 0.5}\n'
    with pytest.raises(ValueError, match="which holds its own"):
        push(save(student, tmp_path / "other"), results=RESULTS)


def test_what_is_published_loads_from_a_plain_folder_too(hub: Hub, folder: Path, tmp_path: Path) -> None:
    push(folder)
    for name, content in hub.commits(ID)[0].files.items():
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / name).write_bytes(content)
    was, now = packed_state(load(folder)), packed_state(load(tmp_path / "copy"))
    assert was.keys() == now.keys() and all(torch.equal(was[name], now[name]) for name in was)
