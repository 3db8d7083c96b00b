"""Random streams of our own, which a run that goes on finds again by the place where they were made."""

from collections import Counter
from collections.abc import Mapping
from typing import ClassVar, final
from weakref import ReferenceType, ref

import torch
from torch import Tensor


def check_seed(seed: int) -> None:
    """Raises ValueError for what numpy takes for no seed."""
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed!r}; give an integer of at least 0 and below 2**32")


def generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A stream of random numbers of its own, from `seed`."""
    rng = torch.Generator(device).manual_seed(seed)
    if Streams.running:
        Streams.running[-1].note(rng)
    return rng


@final
class Streams:
    """The generators of a run, by the stage in which each was made and its number there: the same at every start."""

    running: ClassVar[list["Streams"]] = []

    def __init__(self) -> None:
        self.place = ""
        self.counts: Counter[str] = Counter()
        self.made: dict[str, ReferenceType[torch.Generator]] = {}

    def note(self, rng: torch.Generator) -> None:
        self.counts[self.place] += 1
        self.made[f"{self.place}:{self.counts[self.place]}"] = ref(rng)

    def state_dict(self) -> dict[str, Tensor]:
        """Of those that are still in use."""
        alive = {name: made() for name, made in self.made.items()}
        return {name: rng.get_state() for name, rng in alive.items() if rng is not None}

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        for name, state in state_dict.items():
            rng = self.made[name]() if name in self.made else None
            if rng is not None:  # else nobody has drawn from it since
                rng.set_state(state)
