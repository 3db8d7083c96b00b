"""A student that cannot be saved where it was meant to be goes elsewhere: no work is lost for a full disk."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

PLACES = 9


def elsewhere(target: Path, why: str) -> Iterator[Path]:
    """Folders that nothing lies at: beside `target`, then in the temporary folder and the user's."""
    for place in (target.parent, Path(tempfile.gettempdir()), Path.home()):
        for number in range(1, PLACES + 1):
            folder = place / f"{target.name}-{why}{'' if number == 1 else f'-{number}'}"
            if not folder.exists():
                yield folder
                break


def rescued(save: Callable[[Path], Any], target: Path, why: str) -> Path | None:
    """Where `save(folder)` succeeded, of the places `elsewhere`; None where it did nowhere."""
    for folder in elsewhere(target, why):
        with suppress(OSError, ValueError):
            save(folder)
            return folder
    return None


def save_or_rescue(save: Callable[[Path], Any], target: Path) -> None:
    """`save(target)`; where that fails, elsewhere. Raises OSError or ValueError, as `save` did, that says where."""
    try:
        save(target)
    except (OSError, ValueError) as error:
        place = rescued(save, target, "rescued")
        where = "It could be saved nowhere else" if place is None else f"The student is in {place}"
        text = f"{error}. {where}"
        raise (OSError(text) if isinstance(error, OSError) else ValueError(text)) from error
