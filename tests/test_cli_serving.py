"""The command line on a student that answers: serve, chat."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from functools import partial
from pathlib import Path

import pytest

from commands import run, told
from gguf_toys import CHAT, byte_level, saved


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = byte_level()
    tokenizer.chat_template = CHAT
    return saved("llama", "w4a16e8h8g32", tmp_path_factory.mktemp("serving"), tokenizer)


def test_one_question_is_answered_and_the_file_written_first(folder: Path) -> None:
    facts = told("chat", folder, "--prompt", "fox", "--max_tokens", "4", "--context", "64", "--threads", "1")
    assert isinstance(facts["answer"], str) and 1 <= facts["tokens"] <= 4 and facts["seconds"] > 0
    assert (folder / "gguf" / "model.gguf").is_file()
    again = told("chat", folder, "--prompt", "fox", "--max_tokens", "4", "--context", "64", "--threads", "1")
    assert again["answer"] == facts["answer"]


def test_without_a_template_a_text_goes_on(tmp_path: Path) -> None:
    plain = saved("llama", "w4a16e8g32", tmp_path, byte_level())
    facts = told("chat", plain, "--prompt", "the quick", "--max_tokens", "3", "--context", "64", "--threads", "1")
    assert 1 <= facts["tokens"] <= 3


def test_each_line_is_a_question(folder: Path) -> None:
    command = [sys.executable, "-m", "zsaq_cli", "chat", str(folder), "--max_tokens", "2", "--context", "64", "--json"]
    done = subprocess.run(
        [*command, "--threads", "1"], input="fox\ndog\n", capture_output=True, text=True, check=True,
        env=os.environ | {"http_proxy": "http://127.0.0.1:9"},
    )  # fmt: skip
    assert [facts["tokens"] <= 2 for facts in json.loads(done.stdout)["answers"]] == [True, True]
    long = run("chat", folder, "--prompt", "fox dog " * 300, "--context", "64", "--threads", "1")
    assert long.exit_code == 2 and "llama.cpp refuses" in long.stderr


def test_what_cannot_be_served_is_one_line(folder: Path, tmp_path: Path) -> None:
    for args, text in (
        (("serve", tmp_path), "no folder of a saved student"),
        (("chat", folder, "--prompt", "x", "--cache", "q3"), "a cache of 'q3'"),
    ):
        done = run(*args)
        assert done.exit_code == 2 and text in done.stderr


def test_others_ask_it_by_http(folder: Path) -> None:
    command = [sys.executable, "-m", "zsaq_cli", "serve", str(folder), "--port", "0", "--json", "--context", "64"]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # which a runner in the background has had ignored
    command += ["--threads", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ, preexec_fn=heard)
    assert process.stdout is not None
    try:
        address = json.loads(process.stdout.readline())["address"]
        body = {"messages": [{"role": "user", "content": "fox"}], "max_tokens": 2}
        kind = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{address}/v1/chat/completions", json.dumps(body).encode(), kind)
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert json.load(answer)["usage"]["completion_tokens"] <= 2
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        process.stdout.close()
