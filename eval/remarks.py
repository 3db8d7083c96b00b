"""What has to be told of single pictures, counted, with the names of the first."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, cast, final

import torch
from accelerate import Accelerator
from torch import Tensor

from zsaq.eval.decoding import FRAMES, TRANSPARENT

UNREADABLE: Final = "are no readable pictures and were left out"
KINDS: Final = (UNREADABLE, FRAMES, TRANSPARENT)
FIRST: Final = 3


def told(names: Sequence[str], what: str, count: int | None = None) -> str:
    """As "4 (a.txt, b.txt, c.txt, ...) are no pictures", `count` of them, where not all names are given."""
    count = len(names) if count is None else count
    return f"{count} ({', '.join(names[:FIRST])}{', ...' if count > FIRST else ''}) {what}"


@final
@dataclass(eq=False)
class Remarks:
    """Numbers of pictures by what is to be told of them, no part of what a score is known by; threads may add, in any
    order."""

    numbers: dict[str, list[int]] = field(default_factory=dict, compare=False)
    reasons: dict[int, str] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.numbers, self.reasons = {kind: [] for kind in KINDS}, {}

    def add(self, number: int, kinds: Iterable[str]) -> None:
        for kind in kinds:
            self.numbers[kind].append(number)

    def unreadable(self, number: int, error: ValueError) -> None:
        self.reasons[number] = str(error)
        self.add(number, [UNREADABLE])

    @property
    def why(self) -> str | None:
        """Of the first picture that cannot be read, by number and not by the thread that was first."""
        return self.reasons[min(self.reasons)] if self.reasons else None

    def notes(self, name: Callable[[int], str], accelerator: Accelerator | None = None) -> list[str]:
        """Of the pictures of all processes, which must all call this; `name` of a picture by its number."""
        notes = []
        for kind, own in self.numbers.items():
            numbers = torch.tensor(own, dtype=torch.int64)
            if accelerator is not None and accelerator.num_processes > 1:
                padded = accelerator.pad_across_processes(numbers.to(accelerator.device), pad_index=-1)
                numbers = cast(Tensor, accelerator.gather(padded)).cpu()
            found = sorted(numbers[numbers >= 0].tolist())
            if found:
                notes.append(f"of the pictures {told([name(n) for n in found[:FIRST]], kind, len(found))}")
        return notes
