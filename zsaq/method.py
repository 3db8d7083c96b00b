"""A row of a table of methods, and the budget that a run of it takes."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, final, get_args

Effort = Literal["light", "default", "best"]
RATES: Final = ("lr", "generator_lr", "speed", "lr_bits")
POSITIVE: Final = ("damping", "temperature", "cutoff", "epsilon", "radius", "decay_every", "group", "mix")
SHARES: Final = ("cutoff", "difficulty", "lowest", "highest", "share")  # of a whole: at most 1


@final
@dataclass(frozen=True)
class Budget:
    """The numbers that a method runs with, by name: `budget["steps"]`.

    `of` makes it of a method's row: each of its `budgets` at the effort that was asked for, its `settings`, and what
    was given by name, which wins.
    """

    effort: Effort
    numbers: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.numbers[name]

    @classmethod
    def of(cls, method: "Method", effort: Effort = "default", given: Mapping[str, Any] | None = None) -> "Budget":
        """Raises ValueError for an effort or an option that does not exist, listing what there is, for a count below
        its least, and for a setting of another type than its default."""
        if effort not in get_args(Effort):
            raise ValueError(f"effort is {effort!r}; give one of {', '.join(get_args(Effort))}")
        options = method.options(effort)
        if unknown := [name for name in given or {} if name not in options]:
            listed = ", ".join(f"{name}={value!r}" for name, value in options.items()) or "none"
            raise ValueError(f"{method.name} has no option {', '.join(unknown)}; its options are {listed}")
        numbers = options | dict(given or {})
        for name in method.budgets:
            least = 0 if name.startswith("warm") else 1
            if type(numbers[name]) is not int or not least <= numbers[name] < 2**31:
                raise ValueError(f"{name} is {numbers[name]!r}; give an integer of at least {least} and below 2**31")
        for name, default in method.settings.items():
            off = numbers[name] is None and name in method.optional
            if default is not None and not off and not alike(numbers[name], default):
                raise ValueError(f"{name} is {numbers[name]!r}; give {kind_of(default)}, as the default {default!r}")
        for name, kind in method.kinds.items():
            value, known = numbers[name], kind in (bool, int, float)
            if value is not None and not (alike(value, kind()) if known else isinstance(value, kind)):
                what = kind_of(kind()) if known else f"{kind.__module__}.{kind.__qualname__}"
                raise ValueError(f"{name} is {value!r}; give {what}, or none for its own")
        if still := [name for name in RATES if numbers.get(name) == 0]:
            raise ValueError(f"{still[0]} is 0, with which nothing is learned: give a positive number")
        counted = {name: numbers[name] for name in method.settings if type(numbers[name]) in (int, float)}
        if wild := [name for name, value in counted.items() if value and not 1e-38 <= abs(value) <= 1e38]:
            raise ValueError(f"{wild[0]} is {counted[wild[0]]!r:.20}, which float32 does not hold: give 1e-38 to 1e38")
        if zero := [name for name in POSITIVE if numbers.get(name) == 0]:
            raise ValueError(f"{zero[0]} is 0, which has no meaning here: give a positive number")
        if more := [name for name in SHARES if numbers.get(name) is not None and numbers[name] > 1]:
            raise ValueError(f"{more[0]} is {numbers[more[0]]!r}, a share of a whole: give at most 1")
        return cls(effort, numbers)

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.numbers.items() if value is not None)

    @property
    def told(self) -> str:
        """The numbers, and by name what depends on the model or is left out."""
        open_ones = ", ".join(name for name, value in self.numbers.items() if value is None)
        return (str(self) or "nothing to spend") + (f"; by the model, or none: {open_ones}" if open_ones else "")


def alike(value: Any, default: Any) -> bool:
    """Whether a setting can stand where its default stands: an integer below 2**31 for an integer, a finite number for
    a float, neither below 0, as many for a tuple, else what has its type."""
    if isinstance(default, tuple):
        fitting = isinstance(value, tuple | list) and len(value) == len(default)
        return fitting and all(map(alike, value, default))
    if isinstance(default, float):
        return type(value) in (int, float) and min(default, 0) <= value < math.inf
    if type(default) is int:
        return type(value) is int and 0 <= value < 2**31
    return type(value) is type(default)


def kind_of(default: Any) -> str:
    """What `alike` takes, in words."""
    if isinstance(default, tuple):
        return f"{len(default)} values with commas"
    number, whole = "a finite number of at least 0", "an integer of at least 0 and below 2**31"
    return {bool: "true or false", int: whole, float: number, str: "text"}[type(default)]


@final
@dataclass(frozen=True)
class Method:
    """One row of a table of methods: where inputs come from x how the student is fitted x the paper's defaults.

    `fit(job, config, budget, seed, loop)` answers the student; a job is what its room works on. `budgets`: counts at
    each effort (light: minutes; default: about an hour; best: the paper's); `settings`: everything else that may be
    named; None stands for what depends on the job, and switches off those that are `optional`; `kinds`: the
    type of settings that are None. `inputs`: in words, for results; `zero_shot` is False where real data is read.
    `preset`: vision's, by default.
    """

    name: str
    idea: str
    fit: Callable[..., Any]
    inputs: str
    paper: str = ""
    needs: str = ""
    cost: str = ""
    budgets: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    zero_shot: bool = True
    preset: str | None = None
    optional: frozenset[str] = frozenset()
    kinds: Mapping[str, type] = field(default_factory=dict)

    def options(self, effort: Effort = "default") -> dict[str, Any]:
        """Every option of the method, with its value at this effort."""
        at = get_args(Effort).index(effort)
        return {name: counts[at] for name, counts in self.budgets.items()} | dict(self.settings)
