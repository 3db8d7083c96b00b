"""Turns of runtimes: whoever fails, whenever and however, is left out and takes nobody along."""

from collections.abc import Callable
from typing import Any

import pytest

from zsaq.deploy import rounds
from zsaq.deploy.rounds import Contender, Turns
from zsaq.deploy.timing import Timed


@pytest.fixture(autouse=True)
def without_collecting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which takes a second each time."""
    monkeypatch.setattr(rounds.gc, "collect", lambda: 0)


class Panic(BaseException):
    """What extensions in Rust throw is no Exception."""


ERRORS = [
    AssertionError("N must be divisible by block_n\nand more"), AssertionError(), RuntimeError("x"), ValueError("x"),
    MemoryError("x"), ImportError("x"), NotImplementedError("x"), SystemExit(3), Panic("x"), OSError(28, "full"),
]  # fmt: skip
HOW = pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__ + str(e)[:3])


def failing(error: BaseException, at: int) -> Callable[[], Timed]:
    """Makes what fails at its n-th measurement; 0: when it is made."""
    calls = [0]

    def run(item: Any) -> None:
        calls[0] += 1
        if calls[0] == at:
            raise error

    def make() -> Timed:
        if at == 0:
            raise error
        return Timed(run, 5)

    return make


def measure(run: Callable[[Any], Any], item: Any) -> tuple[float]:
    run(item)
    return (1.0,)


def raced(*contenders: Contender) -> Turns:
    """Two items and two rounds: each is measured 2 + 2 * 3 times."""
    turns = Turns(measure, {"a": 1, "b": 2})
    for contender in contenders:
        turns.prepare(contender)
    turns.take(2)
    return turns


def sound(name: str) -> Contender:
    return Contender(name, lambda: Timed(lambda item: None, 7, ("head",)), ours=False)


@HOW
@pytest.mark.parametrize("at", [0, 1, 2, 3, 5, 8])
def test_a_peer_that_fails_loses_its_own_row(error: BaseException, at: int) -> None:
    turns = raced(sound("first"), Contender("odd", failing(error, at), ours=False), sound("last"))
    assert list(turns.rows) == list(turns.taken) == list(turns.made) == ["first", "last"]
    assert turns.taken["last"] == {"a": [(1.0,), (1.0,)], "b": [(1.0,), (1.0,)]}
    assert turns.rows["first"].items() >= {"runtime": "first", "bytes": 7, "in_floats": ["head"]}.items()
    assert list(turns.left_out) == ["odd"]
    told = turns.left_out["odd"]
    assert told.startswith(f"{type(error).__name__}: ") and "\n" not in told and len(told) > len("Panic: ")


@pytest.mark.parametrize("at", [0, 2, 5])
def test_assertions_of_our_own_rows_raise(at: int) -> None:
    with pytest.raises(AssertionError, match="mine"):
        raced(sound("first"), Contender("zsaq", failing(AssertionError("mine"), at), ours=True))
    turns = raced(sound("first"), Contender("zsaq", failing(ValueError("there is no export"), at), ours=True))
    assert turns.left_out == {"zsaq": "ValueError: there is no export"}


@HOW
@pytest.mark.parametrize("at", [0, 2, 5])
def test_without_the_needed_one_there_is_no_table(error: BaseException, at: int) -> None:
    with pytest.raises(type(error)):
        raced(Contender("base", failing(error, at), ours=False, needed=True))


def test_who_is_stopped_stops() -> None:
    with pytest.raises(KeyboardInterrupt):
        raced(Contender("odd", failing(KeyboardInterrupt(), 1), ours=False))
