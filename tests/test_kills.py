"""A few of the kills that `python tests/kills.py` does by the hundred."""

import pytest

from kills import tally


@pytest.mark.slow
def test_runs_that_are_killed_end_as_those_that_are_not() -> None:
    counts = tally(6, seed=1, methods=("zsaq-paper", "genie"))
    assert counts["equal"] == counts["runs"] > 0 and counts["kills"] >= 6
    assert not {what for what in counts if what.startswith("exit")}
    assert not counts["left behind"]
