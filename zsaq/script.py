"""What every script needs: errors that a user can mend in one line, numbers within their bounds, options as typed."""

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, NoReturn

from safetensors import SafetensorError

BAD_INPUT: Final = 2
UNSET: Final = object()
STARVED: Final = "not enough memory: give a smaller batch, fewer images, a smaller model, or a larger machine"
MISSING: Final = 3  # as the command line's exit codes
OBJECTS: Final = frozenset(  # of zsaq.quantize, zsaq.compare and their like, of which a word is none
    "model config configs methods seeds score data folder loop recipe checkpoint tokenizer processor spec batches real"
    .split()
)  # fmt: skip


@contextmanager
def told() -> Iterator[None]:
    """Inside, such an error ends the process with a line on stderr; any other is ours and keeps its traceback."""
    try:
        yield
    except ImportError as error:
        fail(f'{error}; it comes with an extra: pip install "zsaq[all]"', MISSING)
    except (ValueError, OSError, SafetensorError) as error:
        fail(str(error) or type(error).__name__)
    except (MemoryError, RuntimeError) as error:
        if not starved(error):
            raise
        fail(f"{STARVED} ({error})")


def starved(error: BaseException) -> bool:
    """Whether the machine had too little memory; torch says so in a RuntimeError."""
    return isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error)


def fail(text: str, code: int = BAD_INPUT) -> NoReturn:
    """Leave with that exit code and one line on stderr, however many lines the text has."""
    print(f"error: {' '.join(text.split())}", file=sys.stderr)
    sys.exit(code)


def positive(text: str) -> int:
    """The type of a flag: an integer of at least 1."""
    return _integer(text, 1)


def natural(text: str) -> int:
    """The type of a flag: an integer of at least 0."""
    return _integer(text, 0)


def _integer(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value < 2**31:
        raise argparse.ArgumentTypeError(f"{text!r:.50} is no integer from {least} to {2**31 - 1}")
    return value


def given(flags: argparse.ArgumentParser, argv: Sequence[str] | None, names: Iterable[str]) -> list[str]:
    """Those of these flags that were given, be it their default; `argv`: None for the command line's."""
    unset = dict.fromkeys(names, UNSET)
    read, _ = flags.parse_known_args(argv, argparse.Namespace(**unset))  # a default takes no one's place
    return [f"--{name}" for name in unset if vars(read)[name] is not UNSET]


def check_taken(
    flags: argparse.ArgumentParser, argv: Sequence[str] | None, job: str, taken: Mapping[str, Sequence[str]]
) -> None:
    """Leave with an error for flags that other jobs take, and this one does not; `taken` tells what each takes."""
    others = dict.fromkeys(name for names in taken.values() for name in names if name not in taken[job])
    if strange := given(flags, argv, others):
        own = ", ".join(f"--{name}" for name in taken[job]) or "no such flag"
        flags.error(f"{job} takes {own}: leave {', '.join(strange)} off")


def value_of(text: str) -> Any:
    """An option's value as a person types it: a number, true, false, none, several with commas, or text."""
    if "," in text:
        return tuple(value_of(part) for part in text.split(","))
    named = {"none": None, "true": True, "false": False}
    if text.lower() in named:
        return named[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def options_of(words: Sequence[str]) -> dict[str, Any]:
    """`--steps 200 --lr=0.001` as {"steps": 200, "lr": 0.001}. Raises ValueError for what is no pair, and for names of
    Python's objects."""
    options, rest = dict[str, Any](), list(words)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if not name.startswith("--") or not name[2:].isidentifier() or not (equals or rest):
            raise ValueError(
                f"{' '.join(words)!r} are no options: give pairs such as --steps 200 (`zsaq methods` lists them)"
            )
        options[name[2:]] = value_of(value if equals else rest.pop(0))
    if objects := sorted(OBJECTS & options.keys()):
        raise ValueError(f"--{objects[0]} is no option here, but an argument of Python: leave it off, or call zsaq")
    return options


def beside(options: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """What a script knows by itself, and a user's options. Raises ValueError for an option that it knows already."""
    if both := sorted(options.keys() & known.keys()):
        raise ValueError(f"--{both[0]} {options[both[0]]} is no option here: this script gives it itself; leave it off")
    return {**known, **options}
