"""How commands end: exit codes, one JSON object on stdout, everything else on stderr."""

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from transformers.utils import logging as transformers_logging

import zsaq_cli
from zsaq_cli.answer import Outcome, answer, hushed, lacking, plain


def fail(error: BaseException) -> Any:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("[red]bad"), 2, "[red]bad"),
        (OSError("gone"), 2, "gone"),
        (ConnectionError("broke off"), 4, "broke off"),
        (TimeoutError("late"), 4, "late"),
        (ModuleNotFoundError("No module named 'onnx'", name="onnx.helper"), 3, 'pip install "zsaq[export]"'),
        (ImportError("strange", name="strange"), 3, "install it again"),
    ],
)
def test_errors_have_codes(error: Exception, code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    for as_json in (True, False):
        with pytest.raises(typer.Exit) as left:
            answer(as_json, lambda: fail(error))
        out, err = capsys.readouterr()
        assert left.value.exit_code == code and said in err
        assert json.loads(out)["exit_code"] == code if as_json else out == ""


def test_an_extra_that_the_library_missed_has_the_code_of_a_missing_extra() -> None:
    def work() -> Outcome:
        try:
            raise ImportError("no peft")
        except ImportError:
            raise ValueError('LoRA needs peft: pip install "zsaq[lora]"') from None

    with pytest.raises(typer.Exit) as left:
        answer(False, work)
    assert left.value.exit_code == 3


def test_what_is_printed_meanwhile_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> Outcome:
        print("step 1")
        return Outcome({"x": float("inf"), "path": Path("a"), "rows": (1, True, None)}, ())

    with pytest.raises(typer.Exit):
        answer(True, work)
    out, err = capsys.readouterr()
    assert json.loads(out) == {"x": None, "path": "a", "rows": [1, True, None]} and err == "step 1\n"
    assert plain([float("nan")]) == [None] and "zsaq[bnb]" in lacking(ImportError("", name="bitsandbytes"))


def test_a_mistake_of_ours_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(zsaq_cli, "app", lambda prog_name: fail(RuntimeError("ours")))
    with pytest.raises(SystemExit) as left:
        zsaq_cli.main()
    assert left.value.code == 70 and "RuntimeError: ours" in capsys.readouterr().err


def test_a_hushed_command_shows_no_bars_of_others() -> None:
    def work() -> Outcome:
        assert not transformers_logging.is_progress_bar_enabled()
        return Outcome({}, ())

    assert transformers_logging.is_progress_bar_enabled()
    assert hushed(work)() == Outcome({}, ())
    assert transformers_logging.is_progress_bar_enabled()
