"""What every script needs: errors that a user can mend in one line, and numbers within their bounds."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NoReturn

from safetensors import SafetensorError

BAD_INPUT: Final = 2
STARVED: Final = "not enough memory: give a smaller batch, fewer images, a smaller model, or a larger machine"
MISSING: Final = 3  # as the command line's exit codes


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
