"""What other people's code raises while a student is exported, as one line for users."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from torch import nn

from zsaq.atomic import REFUSED

LINE: Final = 300  # characters that are told of a foreign error


@contextmanager
def in_one_line(model: nn.Module, what: str, remedy: str) -> Iterator[None]:
    """Turns whatever is raised inside into a ValueError: the model's class, `what` is not possible, why, and `remedy`.

    What tells of our own mistakes, of memory, of a missing package or of a disk that refuses passes as it is.
    """
    try:
        yield
    except (AssertionError, MemoryError, ImportError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in REFUSED:
            raise
        raise ValueError(f"{type(model).__name__} {what}: {cause_of(error)}; {remedy}") from error


def cause_of(error: BaseException) -> str:
    """The first line of the error that another began with."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason is given")
    return f"{type(error).__name__}: {line[:LINE]}"
