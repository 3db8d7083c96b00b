"""Numbers that are given by name, checked before anything is spent on them."""

import math
from numbers import Integral, Real
from typing import Any


def check_counts(least: int = 1, **given: Any) -> None:
    """Raises ValueError for what is no whole number of at least `least`: Python's or numpy's, and not a truth."""
    for name, value in given.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} is {value!r:.50}; give at least {least}, as a whole number")


def check_amounts(least: float = 0.0, most: float = math.inf, **given: Any) -> None:
    """Raises ValueError for what is no finite number from `least` to `most`, and for a truth."""
    for name, value in given.items():
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
        if not least <= number <= most or not math.isfinite(number):
            reach = f"from {least:g} to {most:g}" if math.isfinite(most) else f"of at least {least:g}"
            raise ValueError(f"{name} is {value!r:.50}; give a finite number {reach}")
