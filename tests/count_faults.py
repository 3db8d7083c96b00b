"""Faults tried on zsaq and survived, counted: damaged folders, hostile inputs, kills.

    python tests/count_faults.py          # a few of each, in a minute
    python tests/count_faults.py --long   # eleven thousand, in about ten minutes; --seed N: others

A try is survived if it is refused by an error of zsaq's own (ValueError, or OSError of the disk), or if the result is
right all the same. What is accepted in silence, and what ends in somebody else's traceback, is printed by name, and
the exit code is 1. Needs no network; forks, so it runs on Linux and macOS.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Final, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "HF_DEACTIVATE_ASYNC_LOAD": "1"}

import torch
import transformers

from faults_folders import damaged_folders
from faults_hostile import hostile_inputs
from faults_kills import kills
from faults_tally import Tally, table
from zsaq.quiet import quiet


class Counts(NamedTuple):
    """How many: bits flipped in each file, edits of a manifest, hostile values of a kind, kills."""

    flips: int
    edits: int
    hostile: int
    kills: int


SHORT: Final = Counts(2, 10, 8, 4)
LONG: Final = Counts(40, 400, 320, 100)


def tried(counts: Counts, seed: int) -> tuple[list[Tally], int]:
    """All tallies, and how many processes were killed before they were done."""
    torch.set_num_threads(1)
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="zsaq-faults-") as name, quiet():
        root = Path(name)
        for part in ("folders", "hostile", "kills"):
            (root / part).mkdir()
        began = time.perf_counter()

        def told(what: str) -> None:
            print(f"{time.perf_counter() - began:4.0f} s  {what}", file=sys.stderr, flush=True)

        told("kills")
        dead, killed = kills(root / "kills", rng, counts.kills)  # first, while nothing has started threads
        told("damaged folders")
        folders = damaged_folders(root / "folders", rng, counts.flips, counts.edits)
        told("hostile inputs")
        hostile = hostile_inputs(root / "hostile", rng, counts.hostile)
        told("done")
        return [*folders, *dead, *hostile], killed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long", action="store_true", help="the long form")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    began = time.perf_counter()
    tallies, killed = tried(LONG if args.long else SHORT, args.seed)
    print(table(tallies))
    print(
        f"{killed} of the processes died before they were done; seed {args.seed}, {time.perf_counter() - began:.0f} s"
    )
    return 1 if any(tally.silent or tally.foreign for tally in tallies) else 0


if __name__ == "__main__":
    sys.exit(main())
