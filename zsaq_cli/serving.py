"""A student that answers: `zsaq serve`, `zsaq chat`, by llama.cpp's own server in this process."""

import json
import sys
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from zsaq_cli.answer import Folder, Json, Outcome, answer
from zsaq_cli.deploying import local

Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Default: one a processor.")]
Context = Annotated[int, typer.Option("--context", min=0, help="Tokens that are kept; 0: as many as the model reads.")]
Cache = Annotated[
    str | None, typer.Option("--cache", help="Type of the cache of keys and values: f16 (default), q8_0, q5_0, q4_0.")
]


def serve(
    folder: Folder,
    host: Annotated[str, typer.Option("--host")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: one that is free.")] = 8080,
    threads: Threads = None,
    context: Context = 4096,
    cache: Cache = None,
    as_json: Json = False,
) -> None:
    """Serve DIR under an OpenAI-compatible address (/v1/chat/completions, /v1/completions), until interrupted; --json
    tells the address on stdout when it answers.

    By llama.cpp's server, from DIR/gguf, which is written first where it is not there. Nothing is asked of who calls:
    leave --host as it is unless the network is yours.

    Examples:

    \b
    zsaq serve smollm2-w4a16e8h8g32-s16
    zsaq serve smollm2-w4a16e8h8g32-s16 --port 9000 --cache q8_0
    """

    def work() -> Outcome:
        server = started(folder, host=host, port=port, threads=threads, context=context, cache=cache)
        print(f"{folder} answers at {server.address}/v1/chat/completions; interrupt to stop", file=sys.stderr)
        if as_json:
            print(json.dumps({"address": server.address}), file=sys.__stdout__, flush=True)
        threading.Event().wait()
        raise AssertionError("nothing sets it")

    answer(as_json, work)


def chat(
    folder: Folder,
    prompt: Annotated[str | None, typer.Option("--prompt", help="One question; default: what you type.")] = None,
    tokens: Annotated[int, typer.Option("--max_tokens", min=1, help="Of an answer.")] = 256,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0: always the same answer.")] = 0.0,
    threads: Threads = None,
    context: Context = 4096,
    cache: Cache = None,
    as_json: Json = False,
) -> None:
    """Talk to DIR: each line is a question, an empty one ends. A model without a chat template goes on with your text.

    By llama.cpp, from DIR/gguf, which is written first where it is not there.

    Examples:

    \b
    zsaq chat smollm2-w4a16e8h8g32-s16
    zsaq chat smollm2-w4a16e8h8g32-s16 --prompt "What is the capital of France?"
    """

    def work() -> Outcome:
        from zsaq.io.readers import tokenizer_of

        server = started(folder, threads=threads, context=context, cache=cache)
        reader: Any = tokenizer_of(local(folder))
        talks = reader is not None and reader.chat_template is not None
        options = {"max_tokens": tokens, "temperature": temperature}
        said, facts, answers = list[dict[str, str]](), dict[str, Any](), list[dict[str, Any]]()
        for question in [prompt] if prompt is not None else typed():
            began = time.perf_counter()
            if talks:
                said.append({"role": "user", "content": question})
                told = server.chat(said, **options)
                text = told["choices"][0]["message"]["content"]
                said.append({"role": "assistant", "content": text})
            else:
                told = server.ask("/v1/completions", prompt=question, **options)
                text = told["choices"][0]["text"]
            seconds = time.perf_counter() - began
            facts = {"answer": text, "tokens": told["usage"]["completion_tokens"], "seconds": round(seconds, 3)}
            print(text, file=sys.stderr if as_json else sys.__stdout__, flush=True)
            answers.append(facts)
        return Outcome(facts if prompt is not None else {"answers": answers}, ())

    answer(as_json, work)


def typed() -> Any:
    """Lines until an empty one; the question mark is for people alone."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        yield line


def started(folder: str, **options: Any) -> Any:
    """llama.cpp's server of a student; its file is written where it lacks. Raises ValueError for an export of another
    student."""
    source = local(folder)
    from zsaq.deploy.gguf.ggml import library
    from zsaq.deploy.gguf.serving import LlamaServer
    from zsaq.deploy.gguf.write import FILE
    from zsaq.deploy.runtimes import export
    from zsaq.io.added import sealed_export

    library()  # that it is there, before a file is written
    place: Path = source / "gguf"
    if not (place / FILE).exists():
        print(f"{place / FILE} is written first (zsaq export {folder} --to gguf)", file=sys.stderr)
        for change in export(source, "gguf")["changed"]:
            print(f"  {change}", file=sys.stderr)
    sealed_export(place)
    return LlamaServer(place / FILE, **options)
