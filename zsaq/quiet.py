"""A context, and a decorator, in which other libraries show no bars and hints."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers.utils import logging as transformers_logging


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, others say no more than they must: no bars of transformers and of the Hub, no hints of accelerate and of
    torch's exporter.

    transformers' own warnings stay: weights that a checkpoint lacks are worth a line. On the way out all is as it was.
    """
    levels = {logger: logger.level for logger in map(logging.getLogger, ("accelerate", "torch.onnx"))}
    bars, hub_bars = transformers_logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    with _unhindered():
        transformers_logging.disable_progress_bar()  # the Hub's too
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
        with _unhindered():
            if bars:
                transformers_logging.enable_progress_bar()
            (enable_progress_bars if hub_bars else disable_progress_bars)()


@contextmanager
def _unhindered() -> Iterator[None]:
    """The Hub warns where an environment variable decides on its bars; it then keeps to the variable."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
