"""The cache of what recipes make for themselves once: `$XDG_CACHE_HOME/zsaq` or `~/.cache/zsaq`."""

import os
from collections.abc import Callable
from pathlib import Path

from zsaq.atomic import beside, check_room, moved, settle_all


def made_once(cache: Path | None, name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` in the cache (by default the one above); where it is not there, `make` fills a new one.

    Raises ValueError where it cannot be written, before anything is made.
    """
    folder = (cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zsaq") / name
    if os.path.exists(folder):  # unlike the path's own, also of a name that is too long
        return folder
    try:
        check_room(folder)
    except ValueError as error:
        raise ValueError(f"{error}; XDG_CACHE_HOME names another folder for caches") from error
    with beside(folder) as (unfinished, _, mode):
        make(unfinished)
        settle_all(unfinished, mode)
        moved(unfinished, folder)  # or another process was faster
    return folder
