"""The huggingface_hub client of this process, turned to the Hub of hub_server.py."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _http, close_session

from hub_server import Hub


@contextmanager
def turned(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that the client speaks to, without waiting between its attempts."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    close_session()
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with Hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        yield hub
    close_session()
