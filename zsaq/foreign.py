"""Files from strangers, which may be damaged or made up: what other libraries raise on them, in words."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch
from huggingface_hub.errors import LocalEntryNotFoundError, StrictDataclassError
from safetensors import SafetensorError

UNMADE: Final = (  # beside ValueError and OSError
    ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, SafetensorError,
    StrictDataclassError,
)  # fmt: skip


@contextmanager
def made(name: str, what: str) -> Iterator[None]:
    """Inside, `what` is made of the files of `name`, a folder or Hub id.

    Raises ValueError where that is not possible, and ConnectionError where they are not here and the Hub is not
    reached.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except UNMADE as error:
        raise ValueError(
            f"{name!r}: no {what} can be made of its files ({type(error).__name__}: {error}): fetch them again"
        ) from error
    except OSError as error:
        if isinstance(error.__cause__, LocalEntryNotFoundError):
            raise ConnectionError(f"{name!r} is not here and the Hub was not reached: {error}") from error
        raise
