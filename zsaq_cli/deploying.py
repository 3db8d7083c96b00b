"""What is done with a saved student: `zsaq export`, `verify`, `bench`, `report` and `push`."""

import os
import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from zsaq_cli.answer import FAILED, FINE, Folder, Json, Outcome, answer, hushed

MANY = 6
Size = Annotated[
    str | None,
    typer.Option("--size", help="Of images, as 32 or 48x64 (height x width); default: as processor or config tell."),
]


def export(
    folder: Folder,
    to: Annotated[str, typer.Option("--to", help="onnx, openvino, gguf, gptq, compressed-tensors", show_default=False)],
    target: Annotated[
        str | None, typer.Option("--target", help="Folder of the export; default: named like --to, in DIR.")
    ] = None,
    size: Size = None,
    like: Annotated[
        str | None, typer.Option("--like", help="Of gguf: a GGUF of the same model, for tokenizer and description.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the same integer codes for another runtime; nothing is quantized anew.

    onnx is for ONNX Runtime; openvino for text models of static inputs (w2a8s); gguf for llama.cpp and all that is
    built on it; compressed-tensors is read by stock transformers and vLLM, gptq (weights only) by those, SGLang and
    onnxruntime-genai, without zsaq.

    Examples:

    \b
    zsaq export sst2-w4a8 --to onnx
    zsaq export gpt2-w4a8 --to compressed-tensors --target gpt2-w4a8-ct
    zsaq export smollm2-w4a16e8h8g32-s16 --to gguf
    """

    def work() -> Outcome:
        source = local(folder)
        from zsaq.deploy.runtimes import export as write
        from zsaq.report.table import Table

        facts = write(source, to, target, **sized(size), like=like)
        changes = [f"[dim]differs from the student:[/] {escape(change)}" for change in facts.get("changed", ())]
        place = target or str(source / to)
        return Outcome({"folder": place, **facts}, (Table.of_facts(flat(facts)).to_terminal(place), *changes))

    answer(as_json, hushed(work))


def verify(folder: Folder, size: Size = None, as_json: Json = False) -> None:
    """Check that the student, reloaded, and every export of it compute the same; writes parity.json into DIR.

    Exit code 1 if any of them disagrees.

    Example:

    \b
    zsaq verify sst2-w4a8 --json
    """

    def work() -> Outcome:
        source = local(folder)
        from zsaq.deploy.parity import verify as compared
        from zsaq.report.table import Table

        facts = compared(source, **sized(size))
        parts = {name: part for name, part in facts.items() if isinstance(part, dict) and "agrees" in part}
        tables = [Table.of_facts(flat(part)).to_terminal(name) for name, part in parts.items()]
        verdict = f"{escape(folder)}: {'all agree' if facts['agrees'] else '[bold red]they do not agree[/]'}"
        if far := facts.get("not_reached"):
            verdict += f"; attention reaches back {far} tokens, and no input was longer"
        if other := facts.get("not_checked"):
            verdict += f"; not checked, as not called like its format: {escape(', '.join(other))}"
        return Outcome(facts, (*tables, verdict), FINE if facts["agrees"] else FAILED)

    answer(as_json, hushed(work))


def bench(
    folder: Folder,
    repeats: Annotated[
        int, typer.Option("--repeats", min=1, max=10**6, help="Rounds; all runtimes take turns in each.")
    ] = 10,
    shape: Annotated[
        list[str] | None, typer.Option("--shape", help="Batch x tokens, as 1x128; images: batch. May be repeated.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, max=1024, help="Of every runtime; default: as torch has them.")
    ] = None,
    size: Size = None,
    record: Annotated[bool, typer.Option("--record", help="Keep the table in DIR, as bench.json.")] = False,
    as_json: Json = False,
) -> None:
    """Measure latency, memory and size on this machine, beside float and other quantized runtimes.

    Best of all rounds in milliseconds, and how many times faster than torch in floats; for language models that
    generate, the time to the first token too, and tokens a second after it.

    Examples:

    \b
    zsaq bench sst2-w4a8 --record
    zsaq bench sst2-w4a8 --shape 1x16 --shape 16x128 --repeats 50 --threads 1
    """

    def work() -> Outcome:
        source = local(folder)
        from zsaq.deploy.bench import bench as measure
        from zsaq.report.speed import generations, timings
        from zsaq.report.table import Table

        options: dict[str, Any] = sized(size) | ({"shapes": tuple(map(parsed, shape))} if shape else {})
        if threads is not None:
            options["threads"] = threads
        facts = measure(source, repeats=repeats, write=record, **options)
        few: dict[str, Any] = {
            name: facts[name] for name in ("threads", "processors", "repeats", "left_out", "slower") if name in facts
        }
        if kept := {row["runtime"]: row["in_floats"] for row in facts["rows"] if row.get("in_floats")}:
            few["in floats"] = kept
        where = f"on this machine, threads: {facts.get('threads')}"
        shown = [timings(facts).to_terminal(f"{folder} {where}")]
        for table in generations(facts):
            part = facts["generation"]
            shown.append(table.to_terminal(f"{part['new']} tokens after {part['prompt']}, {where}"))
            few["left out of generation"] = part.get("left_out", {})
        return Outcome(facts, (*shown, Table.of_facts(few).to_terminal("of the measurement")))

    answer(as_json, hushed(work))


def report(
    folder: Folder,
    output: Annotated[str | None, typer.Option("--output", help="Default: report.html in DIR.")] = None,
    as_json: Json = False,
) -> None:
    """Write one self-contained HTML page on what lies in DIR, and on what is missing and how to make it.

    Example:

    \b
    zsaq report sst2-w4a8
    """

    def work() -> Outcome:
        source = local(folder)
        from zsaq.report.folder import report as write
        from zsaq.report.table import Table

        path, missing = write(source, Path(output) if output else None)
        facts = {"report": str(path), "bytes": path.stat().st_size, "missing": missing}
        return Outcome(facts, (Table.of_facts(facts).to_terminal(folder),))

    answer(as_json, hushed(work))


def push(
    folder: Folder,
    repo_id: Annotated[str, typer.Argument(help="user/name on the Hub.", show_default=False)],
    base: Annotated[
        str | None, typer.Option("--base", help="The float model, if DIR's results.json does not tell it.")
    ] = None,
    license: Annotated[
        str | None, typer.Option("--license", help="Of the float model, if its card names none.")
    ] = None,
    repeats: Annotated[
        list[str] | None, typer.Option("--repeat", help="Folder of the same run with another seed; may be repeated.")
    ] = None,
    private: Annotated[bool | None, typer.Option("--private/--public", help="Of a repository that is made.")] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="A branch that exists.")] = None,
    create_pr: Annotated[bool, typer.Option("--create_pr", help="As a pull request.")] = False,
    as_json: Json = False,
) -> None:
    """Publish DIR with its model card in one commit, verified first.

    The token is the one of `hf auth login`, or HF_TOKEN.

    Example:

    \b
    zsaq push sst2-w4a8 you/bert-sst2-w4a8 --private
    """

    def work() -> Outcome:
        path = local(folder)
        from zsaq import Card, push_to_hub
        from zsaq.report.card import base_of
        from zsaq.report.table import Table

        if license is not None and base is None:
            raise ValueError("--license is of the base model: give --base too")
        known = base_of(base, license) if base else None
        try:
            card = Card.of(path, *(repeats or ()), base=known)
        except ValueError as error:
            hint = "" if base else "; here: --base MODEL, and --license if its card names none"
            raise ValueError(f"{error}{hint}") from error
        url = push_to_hub(path, repo_id, card, private=private, revision=revision, create_pr=create_pr)
        facts = {"repo_id": repo_id, "url": url}
        return Outcome(facts, (Table.of_facts(facts).to_terminal(folder),))

    answer(as_json, hushed(work))


def local(folder: str) -> Path:
    """Raises ValueError for anything but the folder of a saved model."""
    path = Path(os.path.expanduser(folder))
    if not (path / "config.json").is_file():
        from zsaq.atomic import former_of

        if former := former_of(path):
            raise ValueError(f"a save of {path} was killed; {former} holds what lay there before: rename it")
        raise ValueError(f"{path} is no folder of a saved student (it has no config.json): run zsaq quantize first")
    return path


def parsed(shape: str) -> tuple[int, ...]:
    """(1, 128) of "1x128"."""
    if not re.fullmatch(r"[1-9]\d{0,5}(x[1-9]\d{0,5})?", shape):
        raise ValueError(f"--shape is {shape!r}; give batch x tokens, as 1x128, or for images the batch")
    return tuple(map(int, shape.split("x")))


def sized(size: str | None) -> dict[str, Any]:
    """{"size": (48, 64)} of "48x64", a square of "48", and nothing of None."""
    if size is None:
        return {}
    if not re.fullmatch(r"[1-9]\d{0,4}(x[1-9]\d{0,4})?", size):
        raise ValueError(f"--size is {size!r}; give pixels, as 32, or height x width, as 48x64")
    return {"size": tuple(map(int, (size.split("x") * 2)[:2]))}


def flat(facts: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Numbers and texts at any depth by their path; what has an entry a layer is left to --json and the report."""
    found: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, dict):
            found |= flat(value, f"{before}{name} ") if len(value) <= MANY else {}
        elif not isinstance(value, list):
            found[f"{before}{name}"] = value
    return found
