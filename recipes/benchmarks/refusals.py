"""Which errors are refusals of zsaq's own, which say what to do, and which are somebody's traceback."""

from typing import Final

OURS: Final = ("zsaq", "zsaq_cli")


def ours(error: BaseException) -> bool:
    """Whether it is a ValueError that was raised by a line of zsaq."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    raised_by = "" if frame is None else frame.tb_frame.f_globals.get("__name__", "")
    return isinstance(error, ValueError) and raised_by.split(".")[0] in OURS


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]
