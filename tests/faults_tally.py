"""What is counted of each kind of fault, and how texts and JSON are spoiled, the same for the same seed."""

import copy
import random
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Final, final

sys.path.insert(0, str(Path(__file__).parent.parent / "recipes"))

from benchmarks.refusals import first_line, ours

SECONDS: Final = 60  # after which a try counts as hung
GONE: Final = object()
HOSTILE: Final[tuple[Any, ...]] = (
    *(None, True, -1, 0, 7, 10**30, 1.5, -0.5, float("nan"), float("inf")),
    *("", "x", "../../../etc/passwd", "a\u202eb", "\ud800", [], {}, [[]], [None], {"a": 1}, GONE),
)
Place = tuple[Any, ...]  # keys and indices, from the top


class Hung(BaseException):
    """Not an Exception, so that nobody takes it for a mistake of the input."""


@final
@dataclass
class Tally:
    """Tries of one kind. `refused`: by a ValueError of ours or an OSError; `right`: what was given did not matter;
    `silent`: accepted, and the result is another; `foreign`: any other exception, or none after `SECONDS`."""

    name: str
    tried: int = 0
    refused: int = 0
    right: int = 0
    silent: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    def attempt(self, label: str, act: Callable[[], bool]) -> None:
        """`act` answers whether its result is right."""
        self.tried += 1
        former = signal.signal(signal.SIGALRM, hang)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                well = act()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 (whatever comes is what is counted; Rust panics are no Exception)
            if ours(error) or isinstance(error, OSError):
                self.refused += 1
            else:
                self.foreign.append(f"{label}: {type(error).__name__}: {first_line(error)[:160]}")
            return
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, former)
        if well:
            self.right += 1
        else:
            self.silent.append(label)


def hang(number: int, frame: FrameType | None) -> None:
    raise Hung(f"no end after {SECONDS} seconds")


def table(tallies: list[Tally]) -> str:
    """One row a kind, and their sum; then what fell through."""
    rows = [(t.name, t.tried, t.refused, t.right, len(t.silent), len(t.foreign)) for t in tallies]
    rows.append(("all", *(sum(row[i] for row in rows) for i in range(1, 6))))  # type: ignore[arg-type]
    lines = [
        "| what | tried | refused | result right | accepted in silence | tracebacks not ours |",
        "|---|" + "---:|" * 5,
    ]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    lines += [f"SILENT {t.name}: {label}" for t in tallies for label in t.silent]
    lines += [f"FOREIGN {t.name}: {label}" for t in tallies for label in t.foreign]
    return "\n".join(lines)


def places(data: Any, at: Place = ()) -> Iterator[Place]:
    """Where something stands in JSON, containers before what they hold."""
    keys = data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
    for key in keys:
        yield (*at, key)
        yield from places(data[key], (*at, key))


def mutants(data: Any, rng: random.Random, count: int, within: Place = ()) -> Iterator[tuple[str, Place, Any, Any]]:
    """`count` copies of `data`, each with one place below `within` spoiled: label, place, what was put there, copy."""
    below = [place for place in places(data) if place[: len(within)] == within and place != within]
    pairs = [(place, value) for place in below for value in HOSTILE]
    for place, value in rng.sample(pairs, min(count, len(pairs))):
        changed = copy.deepcopy(data)
        holder = changed
        for key in place[:-1]:
            holder = holder[key]
        if value is GONE:
            del holder[place[-1]]
        elif holder[place[-1]] == value and type(holder[place[-1]]) is type(value):
            continue
        else:
            holder[place[-1]] = value
        yield f"{'.'.join(map(str, place))} = {'(gone)' if value is GONE else repr(value)}", place, value, changed
