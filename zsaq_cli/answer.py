"""How every command ends: a table for people or JSON for programs, and an exit code that means something."""

import json
import math
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Annotated, Any, Final, NoReturn, final

import typer
from rich.console import Console, RenderableType
from rich.markup import escape

FINE: Final = 0
FAILED: Final = 1
BAD_INPUT: Final = 2
MISSING: Final = 3
UNREACHABLE: Final = 4
BUG: Final = 70
WIDE: Final = 200  # columns where nobody's terminal sets them
EXTRAS: Final = {  # what an optional package is imported as -> the extra that installs it
    "compressed_tensors": "export", "onnx": "export", "onnxruntime": "export", "onnxscript": "export",
    "openvino": "openvino",
    "datasets": "eval", "pyarrow": "eval", "sklearn": "vision", "PIL": "vision",
    "gguf": "gguf", "xllamacpp": "gguf", "matplotlib": "plot", "peft": "lora", "bitsandbytes": "bnb",
}  # fmt: skip

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, everything else on stderr.")]
Folder = Annotated[str, typer.Argument(metavar="DIR", help="Folder of a saved student.", show_default=False)]


@final
@dataclass(frozen=True)
class Outcome:
    """What a command found: `facts` for programs, `shown` for people, and whether what was asked for `holds`."""

    facts: Mapping[str, Any]
    shown: tuple[RenderableType, ...]
    code: int = FINE


def answer(as_json: bool, work: Callable[[], Outcome]) -> NoReturn:
    """Run `work` with stdout turned to stderr, print what it found and leave with its code."""
    try:
        with redirect_stdout(sys.stderr):
            outcome = work()
    except ImportError as error:
        complain(as_json, MISSING, lacking(error))
    except (ConnectionError, TimeoutError) as error:
        complain(as_json, UNREACHABLE, str(error))
    except (ValueError, OSError) as error:
        # An extra that the library missed and told about in its own words.
        complain(as_json, MISSING if isinstance(error.__context__, ImportError) else BAD_INPUT, str(error))
    except (MemoryError, RuntimeError) as error:
        from zsaq.script import STARVED, starved

        if not starved(error):
            raise
        complain(as_json, BAD_INPUT, f"{STARVED} ({error})")
    if as_json:
        print(json.dumps(plain(outcome.facts)))
    else:
        console = Console(width=None if sys.stdout.isatty() else WIDE)
        for part in outcome.shown:
            console.print(part)
    raise typer.Exit(outcome.code)


def hushed(work: Callable[[], Outcome]) -> Callable[[], Outcome]:
    """`work` without the loading bars and hints of others."""

    def inside() -> Outcome:
        from zsaq.quiet import quiet

        with quiet():
            return work()

    return inside


def complain(as_json: bool, code: int, text: str) -> NoReturn:
    Console(stderr=True).print(f"[bold red]error:[/] {escape(text)}", highlight=False, soft_wrap=True)
    if as_json:
        print(json.dumps({"error": text, "exit_code": code}))
    raise typer.Exit(code)


def lacking(error: ImportError) -> str:
    """What is missing, and what installs it."""
    extra = EXTRAS.get((error.name or "").split(".")[0])
    if extra is None:
        return f"{error}; zsaq is not whole, install it again: pip install --upgrade zsaq"
    return f'{error}; it comes with an extra: pip install "zsaq[{extra}]"'


def plain(value: Any) -> Any:
    """As strict JSON has it: numbers that are not finite become null, paths and the like text."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)
