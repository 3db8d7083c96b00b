"""Locks of files between processes. Who is killed holds none."""

import errno
import os

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def hold(handle: int, wait: bool = False) -> None:
    """Hold the lock of an open file, until it is closed.

    Raises BlockingIOError where another process holds it, unless it is to `wait`; OSError where files have no locks.
    """
    if fcntl is None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
