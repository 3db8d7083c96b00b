"""Memory that was let go of, given back to the system."""

import ctypes
from contextlib import suppress
from typing import Final

M_MMAP_THRESHOLD: Final = -3  # of glibc's mallopt
LARGE: Final = 2**20  # bytes


def map_large() -> None:
    """Have the C library (glibc) map what is LARGE by itself from here on, and unmap it when it is freed. Its own bound
    follows what is freed, up to 32 MB, and below that pieces stay: 4.6 GiB for a model of 3 billion weights."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)


def trim() -> None:
    """Where the C library keeps freed pieces of some megabytes for itself (glibc; 400 MB for each block of a model of 3
    billion weights), have it give them back; elsewhere nothing."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
