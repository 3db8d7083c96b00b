"""What is not published: repositories, folders and cards that do not fit, each refused by what to do."""

from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants

from hub_server import TOKEN, Hub
from publishing import CARD, ID, folder, hub, push, student
from zsaq import QuantConfig, push_to_hub
from zsaq.io.added import write_added
from zsaq.report.hub import ready

__all__ = ["folder", "hub", "student"]
# huggingface_hub 2.4 sends a file as `data=`, which httpx2 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def test_a_repository_that_is_not_ours_is_left_alone(hub: Hub, folder: Path) -> None:
    files = hub.create(ID).branches["main"][0].files
    files |= {"pytorch_model.bin": b"theirs", "README.md": b"theirs"}
    with pytest.raises(ValueError, match=r"pytorch_model\.bin.*not ours"):
        push(folder)
    assert hub.commits(ID) == []


def test_visibility_is_not_changed_in_silence(hub: Hub, folder: Path) -> None:
    hub.create(ID)
    with pytest.raises(ValueError, match="public already"):
        push(folder, private=True)


@pytest.mark.parametrize(
    "name", ["", "tiny", "a/b/c", "../x/y", "tester/..", "tester/a b", "http://x/y", "t/-x", "é/x", "t/x.git", "t/x\n"]
)
def test_a_hostile_repository_id_is_refused_before_anything(hub: Hub, folder: Path, name: str) -> None:
    with pytest.raises(ValueError, match="give 'user/name'"):
        push_to_hub(folder, name, CARD, token=TOKEN)
    assert hub.requests == []


def test_errors_say_what_to_do(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="hf auth login` again"):
        ready(ID, "hf_wrong")
    monkeypatch.setattr(HfApi, "whoami", no_token)
    with pytest.raises(ValueError, match="not logged in"):
        ready(ID)
    monkeypatch.undo()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set"):
        ready(ID, TOKEN)


def no_token(self: HfApi) -> None:
    from huggingface_hub.errors import LocalTokenNotFoundError

    raise LocalTokenNotFoundError("none")


def test_no_right_to_the_namespace(hub: Hub, folder: Path) -> None:
    with pytest.raises(ValueError, match="no right to write to google/model"):
        push_to_hub(folder, "google/model", CARD, token=TOKEN)


def test_a_folder_that_its_manifest_does_not_fit_is_not_published(hub: Hub, folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        push(folder)
    assert ID not in hub.repositories


def test_a_card_of_another_model_is_refused(hub: Hub, folder: Path) -> None:
    with pytest.raises(ValueError, match="not of one run"):
        push_to_hub(folder, ID, replace(CARD, config=QuantConfig.parse("w8a8")), token=TOKEN)
    assert ID not in hub.repositories


def test_what_belongs_to_another_model_is_not_published(hub: Hub, folder: Path) -> None:
    for name in ("bench.json", "parity.json", "results.json", "onnx/export.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / "onnx/model.onnx").parent.mkdir(exist_ok=True)
        (folder / "onnx/model.onnx").write_bytes(b"graph")
        write_added(folder / name, {}, "0" * 64)
        with pytest.raises(ValueError, match=r"belongs to another model|cannot be read"):
            push(folder)
        (folder / name).unlink()
    assert ID not in hub.repositories
