"""Memory that was let go of, given back to the system."""

import ctypes
from contextlib import suppress


def trim() -> None:
    """Where the C library keeps freed pieces of some megabytes for itself (glibc; 400 MB for each block of a model of 3
    billion weights), have it give them back; elsewhere nothing."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
