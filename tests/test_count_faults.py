"""Nothing is accepted in silence, and no traceback is somebody else's: a few of the faults of `count_faults.py`."""

import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = Path(__file__).parent / "count_faults.py"


def run(*options: str) -> str:
    """In a process of its own: it forks, and kills what it forked."""
    done = subprocess.run([sys.executable, str(FAULTS), *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout


def test_a_few_faults_are_survived() -> None:
    assert "kills inside zsaq.save" in run()


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["0", "1"])
def test_thousands_of_faults_are_survived(seed: str) -> None:
    assert "kills inside zsaq.save" in run("--long", "--seed", seed)
