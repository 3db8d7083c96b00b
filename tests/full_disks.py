"""What a disk does when it is full, and a folder when nobody may write there, without either."""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def small_disk(bytes: int) -> Iterator[None]:
    """Inside, no file grows beyond `bytes`: the kernel refuses it, to every library."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def forbid(monkeypatch: pytest.MonkeyPatch, folder: Path, number: int = errno.EROFS) -> None:
    """From now on nothing new can be opened for writing, or made, directly in `folder`; what is above and below can."""

    def refusing(call: Any) -> Any:
        def inside(path: Any, *args: Any, **options: Any) -> Any:
            writes = call is not os.open or (args and args[0] & os.O_CREAT)
            if writes and not isinstance(path, int) and Path(path).parent == folder:
                raise OSError(number, os.strerror(number), str(path))
            return call(path, *args, **options)

        return inside

    for name in ("open", "mkdir"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))
