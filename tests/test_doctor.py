"""`zsaq doctor` tells the truth about what is there, and does not fall ill itself."""

import builtins
import importlib.metadata
import json
from typing import Any

import pytest
from typer.testing import CliRunner

from zsaq_cli import app, health

REQUIRES = [
    "torch>=2.10", "transformers<6,>=5.5", 'onnx>=1.18; extra == "export"', "peft>=0.18; extra == 'lora'",
    'zsaq[eval]; extra == "vision"', 'pytest>=8; extra == "dev"',
]  # fmt: skip
HERE = {"zsaq": "0.1.0", "torch": "2.13.0+cpu", "transformers": "5.23.0", "onnx": "1.23.0"}


def version(name: str) -> str:
    if name not in HERE:
        raise importlib.metadata.PackageNotFoundError(name)
    return HERE[name]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What is installed, to be changed; nothing is imported in earnest."""
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: REQUIRES)
    here = dict(HERE)
    monkeypatch.setattr("test_doctor.HERE", here)
    monkeypatch.setattr(importlib.metadata, "version", version)
    return here


def states() -> dict[str, str]:
    return {check.name: check.state for check in health.packages()}


def test_all_is_well(installed: dict[str, str]) -> None:
    assert states() == {
        "zsaq": "ok",
        "torch": "ok",
        "transformers": "ok",
        "onnx (export)": "ok",
        "peft (lora)": "absent",
    }
    remedy = next(check.remedy for check in health.packages() if check.name == "peft (lora)")
    assert 'pip install --upgrade "zsaq[lora]"' in remedy


@pytest.mark.parametrize("found", ["2.9.1", "1.0", None])
def test_a_core_package_below_its_floor_is_broken(installed: dict[str, str], found: str | None) -> None:
    installed.pop("torch")
    installed |= {} if found is None else {"torch": found}
    assert states()["torch"] == "broken"
    installed["onnx"] = "1.0"
    assert states()["onnx (export)"] == "absent"


def test_an_uninstalled_zsaq_is_broken(installed: dict[str, str]) -> None:
    installed.clear()
    assert [check.state for check in health.packages()] == ["broken"]


def test_the_command_for_programs_and_for_people() -> None:
    told = CliRunner().invoke(app, ["doctor", "--json"])
    facts = json.loads(told.stdout)
    names = {check["name"] for check in facts["checks"]}
    assert told.exit_code == (0 if facts["fine"] else 3)
    assert {"python", "torch", "transformers", "kernels", "CUDA", "providers", "offline", "login"} <= names
    assert all(set(check) == {"group", "name", "value", "state", "remedy"} for check in facts["checks"])
    shown = CliRunner().invoke(app, ["doctor"])
    assert "zsaq doctor" in shown.stdout and "kernels" in shown.stdout and shown.exit_code == told.exit_code


def test_a_token_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "s" * 34)
    told = {check.name: check for check in health.hub()}
    assert told["login"].state == "ok" and "sss" not in str(told)


@pytest.mark.parametrize("lost", ["torch", "zsaq", "onnxruntime", "huggingface_hub"])
def test_what_cannot_be_imported_is_told(monkeypatch: pytest.MonkeyPatch, lost: str) -> None:
    there = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == lost:
            raise ImportError(f"no {lost}", name=lost)
        return there(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    outcome = health.examine()
    assert outcome.code == (3 if lost in ("torch", "zsaq") else 0)
    broken = [check for check in outcome.facts["checks"] if check["state"] == "broken"]
    assert all(f"no {lost}" in check["value"] for check in broken)
