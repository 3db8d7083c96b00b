"""A context, and a decorator, in which other libraries show no bars and hints."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import ClassVar, final

from huggingface_hub.utils.tqdm import progress_bar_states
from transformers.utils import logging as transformers_logging


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, others say no more than they must: no bars of transformers and of the Hub, no hints of accelerate and of
    torch's exporter.

    transformers' own warnings stay: weights that a checkpoint lacks are worth a line. When the last of those inside, of
    any thread, is out, all is as it was before the first.
    """
    _Hush.enter()
    try:
        yield
    finally:
        _Hush.leave()


@final
class _Hush:
    """How many are inside, and what puts all back."""

    lock: ClassVar = Lock()
    inside: ClassVar[int] = 0
    back: ClassVar[ExitStack] = ExitStack()

    @classmethod
    def enter(cls) -> None:
        with cls.lock:
            if not cls.inside:
                cls.back = _hushed()
            cls.inside += 1

    @classmethod
    def leave(cls) -> None:
        with cls.lock:
            cls.inside -= 1
            if not cls.inside:
                cls.back.close()


def _hushed() -> ExitStack:
    """Others are silent, until it is closed."""
    back = ExitStack()
    for logger in map(logging.getLogger, ("accelerate", "torch.onnx")):
        back.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.ERROR)
    back.callback(_put_back, transformers_logging.is_progress_bar_enabled(), dict(progress_bar_states))
    with _unhindered():
        transformers_logging.disable_progress_bar()  # the Hub's too
    return back


def _put_back(bars: bool, states: dict[str, bool]) -> None:
    """Bars of transformers, and those of the Hub by their groups."""
    with _unhindered():
        if bars:
            transformers_logging.enable_progress_bar()
    progress_bar_states.clear()
    progress_bar_states.update(states)


@contextmanager
def _unhindered() -> Iterator[None]:
    """The Hub warns where an environment variable decides on its bars; it then keeps to the variable."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
