"""Runtimes are made ready one after the other and measured in turns, so that all see the same load.

One that fails, while it is made, first run or measured, is left out with its reason, and takes nobody along.
"""

import gc
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, final

from zsaq.atomic import told
from zsaq.deploy.foreign import cause_of
from zsaq.deploy.timing import Timed
from zsaq.trimming import trim

MEMORY: Final = "growth of this process while a runtime was made and first run, one after the other: a rough figure"


def resident() -> int:
    """Bytes of this process that lie in memory, without what was let go of."""
    gc.collect()
    trim()  # else later runtimes live in what earlier ones left
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the kernel tells no VmRSS")


@final
@dataclass(frozen=True)
class Contender:
    """Who takes part. `ours`: an assertion that fails in it is our own mistake; `needed`: without it there is no
    table."""

    name: str
    make: Callable[[], Timed]
    ours: bool
    needed: bool = False


@final
@dataclass
class Turns:
    """Measurements by `measure(made, item)`, a tuple of numbers, for each of the named `items`.

    `rows`: name -> facts; `taken`: name -> item -> what each round measured; `left_out`: name -> why.
    """

    measure: Callable[[Any, Any], tuple[float, ...]]
    items: Mapping[str, Any]
    made: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    taken: dict[str, dict[str, list[tuple[float, ...]]]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    contenders: dict[str, Contender] = field(default_factory=dict)

    def prepare(self, contender: Contender) -> None:
        """Make it and run every item once. Raises what the needed one raises, and assertions of our own."""
        memory = resident()
        with self.spared(contender):
            with told(Path(tempfile.gettempdir()) / "zsaq"):
                made, size, in_floats = contender.make()
            for item in self.items.values():
                self.measure(made, item)
            row = {"runtime": contender.name, "bytes": size, "memory": max(0, resident() - memory)}
            self.rows[contender.name] = row | ({"in_floats": list(in_floats)} if in_floats else {})
            self.made[contender.name], self.contenders[contender.name] = made, contender

    def take(self, rounds: int) -> None:
        """Measure all, in turns; the first round of each item is not counted. Raises as `prepare` does."""
        for item, value in self.items.items():
            for turn in range(rounds + 1):
                for name in list(self.made):
                    with self.spared(self.contenders[name]):
                        measured = self.measure(self.made[name], value)
                        if turn:
                            self.taken.setdefault(name, {}).setdefault(item, []).append(measured)

    @contextmanager
    def spared(self, contender: Contender) -> Iterator[None]:
        """Leaves out whoever fails inside, by whatever its runtime throws, a panic or an exit too."""
        try:
            yield
        except BaseException as error:
            own = contender.ours and isinstance(error, AssertionError)
            if contender.needed or own or isinstance(error, KeyboardInterrupt):
                raise
            self.left_out[contender.name] = cause_of(error)
            for found in (self.made, self.rows, self.taken):
                found.pop(contender.name, None)
