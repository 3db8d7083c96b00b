"""A student that cannot be saved where it was meant to be goes elsewhere: no work is lost for a full disk."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

MOST: Final = 9  # folders of one name that are passed over


def elsewhere(target: Path, why: str) -> Iterator[Path]:
    """Folders that nothing lies at: beside `target`, then in the temporary folder and in the user's own."""
    for place in (lambda: target.parent, lambda: Path(tempfile.gettempdir()), Path.home):
        for number in range(1, MOST + 1):
            with suppress(OSError, RuntimeError):  # there is no such place
                folder = place() / f"{target.name}-{why}{'' if number == 1 else f'-{number}'}"
                if not os.path.lexists(folder):
                    yield folder
                    break


def rescued(save: Callable[[Path], Any], target: Path, why: str) -> Path | None:
    """Where `save(folder)` succeeded, of the places `elsewhere`; None where it did nowhere."""
    for folder in elsewhere(target, why):
        with suppress(Exception):
            save(folder)
            return folder
    return None


def save_or_rescue(save: Callable[[Path], Any], target: Path) -> None:
    """`save(target)`; where that fails, elsewhere. Raises what `save` did, which says where."""
    try:
        save(target)
    except Exception as error:
        place = rescued(save, target, "rescued")
        where = "It could be saved nowhere else" if place is None else f"The student is in {place}"
        if not isinstance(error, OSError | ValueError):
            error.add_note(where)
            raise
        raise (OSError if isinstance(error, OSError) else ValueError)(f"{error}. {where}") from error
