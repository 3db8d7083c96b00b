"""What is checked of a script's words before a teacher is there: bits, options, real data, the right to publish."""

import argparse
import inspect
from pathlib import Path

from zsaq.api import methods, quantize
from zsaq.comparing import check_options, compare, owned
from zsaq.io.folder import place_of
from zsaq.method import Budget
from zsaq.report.card import base_of
from zsaq.report.hub import ready
from zsaq.subject import GIVEN, SUBJECT, check_config
from zsaq.train.randomness import check_seed


def check_words(args: argparse.Namespace) -> None:
    """Raises ValueError for bits, a preset, seeds and options of the chosen methods that are none."""
    several, table = "methods" in vars(args), methods()[args.room]
    for bits in args.bits if several else [args.bits]:
        check_config(args.room == "vision", bits, args.preset)
    for seed in args.seeds if several else [args.seed]:
        check_seed(seed)
    rows = [table[name] for name in (args.methods if several else [args.method]) if name in table]  # not of auto
    arguments = {*SUBJECT, *inspect.signature(compare if several else quantize).parameters}
    options = {name: value for name, value in args.options.items() if name not in arguments}
    check_options(rows or list(table.values()), options)
    for row in rows:
        Budget.of(row, args.effort, owned(row, options))


def check_real(flags: argparse.ArgumentParser, args: argparse.Namespace, flag: str) -> None:
    """Leave with an error for methods that read real data, where there is none without that flag."""
    table, names = methods()[args.room], vars(args).get("methods") or [args.method]
    reading = [name for name in names if name in table and not table[name].zero_shot and name != GIVEN]
    if reading and not vars(args)[flag]:
        flags.error(f"{', '.join(reading)} without --{flag}: give real data, or methods that read none")


def check_publishing(push_to_hub: str | None, license: str | None, teacher: str | Path | None) -> None:
    """Raises ValueError for a repository that cannot be written to, and for a teacher, None if it is of no path or id,
    that no licence is known of."""
    if push_to_hub is not None:
        ready(push_to_hub)
        if license is None and (teacher is None or not base_of(place_of(teacher)).license):
            raise ValueError("--push_to_hub needs --license: nothing tells under what terms the model stands")
