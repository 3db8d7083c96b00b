"""The command line on a saved student: export, verify, bench, report, push."""

import sys
import types
from pathlib import Path
from typing import Any

import pytest

import zsaq
from commands import run, told, toys_in
from hub_client import turned
from hub_server import TOKEN
from zsaq import Card
from zsaq.report.card import base_of
from zsaq_cli.deploying import flat


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys_in(tmp_path_factory.mktemp("cli"))


def library(monkeypatch: pytest.MonkeyPatch, name: str, **functions: Any) -> None:
    module = types.ModuleType(name)
    vars(module).update(functions)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize(("agrees", "code"), [(True, 0), (False, 1)])
def test_verify_leaves_with_what_it_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch, agrees: bool, code: int
) -> None:
    part = {"agrees": agrees, "layer": "[bold]q", "difference": float("nan")}
    found = {"agrees": agrees, "loaded": part}
    library(monkeypatch, "zsaq.deploy.parity", verify=lambda path: found)
    facts = told("verify", folder / "student", code=code)
    assert facts == {"agrees": agrees, "loaded": {**part, "difference": None}}
    shown = run("verify", folder / "student")
    assert shown.exit_code == code and "[bold]q" in shown.stdout


def test_an_unknown_runtime_is_refused(folder: Path) -> None:
    assert "tflite" in told("export", folder / "student", "--to", "tflite", code=2)["error"]


def test_export_and_bench_hand_over_what_was_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"runtime": "[x]", "bytes": 2**20, "ms": {"1x2": {"best": 1.5}}, "faster": {"1x2": 2.0}}
    found: dict[str, Any] = {"rows": [row, {"runtime": "other", "ms": 3}], "slower": {}}
    library(monkeypatch, "zsaq.deploy.bench", bench=lambda path, **more: {**found, **more})
    monkeypatch.setattr(
        "zsaq.deploy.runtimes.export", lambda source, to, target, **more: {"to": to, "target": target, **more}
    )
    student = folder / "student"
    assert told("export", student, "--to", "onnx")["folder"] == str(student / "onnx")
    assert told("export", student, "--to", "onnx", "--target", "t")["target"] == "t"
    assert told("export", student, "--to", "onnx", "--size", "24x40")["size"] == [24, 40]
    assert told("bench", student, "--size", "8")["size"] == [8, 8]
    assert told("bench", student) == {**found, "repeats": 10, "write": False}
    asked = {"repeats": 3, "write": True, "shapes": [[1, 2]]}
    assert told("bench", student, "--shape", "1x2", "--repeats", "3", "--record") == {**found, **asked}
    assert "1.50" in run("bench", student, "--shape", "8").stdout
    assert told("bench", student, "--threads", "1")["threads"] == 1
    assert "threads: 3" in run("bench", student, "--threads", "3").stdout
    found["rows"][0]["in_floats"] = ["[b]head"]
    found["generation"] = {"prompt": 9, "new": 8, "rows": [{"runtime": "[y]", "tokens_a_second": {"best": 7.5}}]}
    shown = run("bench", student, "--threads", "2").stdout
    assert all(text in shown for text in ("8 tokens after 9", "threads: 2", "[y]", "7.5", "[b]head"))
    for shape in ("", "0x1", "axb", "1x2x3", "-1x2"):
        assert told("bench", student, "--shape", shape, code=2)["error"]


@pytest.mark.parametrize("command", ["verify", "bench", "report"])
def test_a_folder_of_nothing_is_bad_input(tmp_path: Path, command: str) -> None:
    assert "zsaq quantize" in told(command, tmp_path, code=2)["error"]


def test_push_makes_the_card_and_tells_the_url(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def push(source: Path, repo_id: str, card: Card, **options: Any) -> str:
        seen.append((repo_id, card.base.name, options))
        return "https://hub/commit"

    monkeypatch.setattr(zsaq, "push_to_hub", push)
    facts = told("push", folder / "student", "me/x", "--private")
    assert facts == {"repo_id": "me/x", "url": "https://hub/commit"}
    assert seen == [("me/x", "bert", {"private": True, "revision": None, "create_pr": False})]
    told("push", folder / "student", "me/x", "--base", folder / "opt", "--license", "mit")
    assert seen[1][1] == "opt" and base_of(folder / "opt", "mit").name == "opt"
    assert "--base" in told("push", folder / "student", "me/x", "--license", "mit", code=2)["error"]


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # see test_publish.py
def test_push_sends_to_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with turned(monkeypatch) as hub:
        url = told("push", folder / "student", "tester/cli")["url"]
        assert url.startswith(hub.url)
        assert told("push", folder / "student", "tester", code=2)["error"]
        assert told("push", folder / "student", "stranger/cli", code=2)["error"]


def test_push_offline_is_bad_input(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    assert "HF_HUB_OFFLINE" in told("push", folder / "student", "me/x", code=2)["error"]


def test_facts_are_flattened_whatever_their_names_are() -> None:
    assert flat({"bits": {4: 2, "all": True}, "layers": ["a"]}, "of ") == {"of bits 4": 2, "of bits all": True}
