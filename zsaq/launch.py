"""What a script under `accelerate launch`, or the command line, needs around `zsaq.quantize` and `zsaq.compare`.

Flags of a method's own options; a session with our own lines on stderr, errors in one line and the table on stdout; and
what is checked before anything is spent, a teacher made or loaded: the output folder, bits, options, the right to
publish.
"""

import argparse
import dataclasses
import hashlib
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, get_args

from rich.console import Console
from torch import nn
from transformers import PreTrainedModel

from zsaq.api import methods, quantize
from zsaq.beforehand import check_publishing, check_words
from zsaq.comparing import compare
from zsaq.io.rescue import rescued, save_or_rescue
from zsaq.io.saving import alone, save
from zsaq.io.target import float_bytes, ready_comparison, ready_target
from zsaq.method import Effort
from zsaq.quiet import quiet
from zsaq.report.curves import draw_curves
from zsaq.report.table import Table
from zsaq.script import beside, options_of, positive, told, value_of
from zsaq.student import made_whole, noted
from zsaq.train.logging import say
from zsaq.train.loop import Loop, processes
from zsaq.train.optim import NotFinite

MEMORY: Final = {
    "recompute": "compute blocks again in the backward pass: less memory",
    "adamw_8bit": "keep the optimizer's states in 8 bits (bitsandbytes)",
    "shared": "processes share each batch, and make the student of one",
}


def blank(text: str | None) -> argparse.ArgumentParser:
    """With the flags of every recipe. No flag may be shortened: it could be meant for the method."""
    flags = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    flags.set_defaults(own=[], preset=None, trackers=[])
    flags.add_argument(
        "--checkpoint_every", type=positive, metavar="STEPS", help="keep the run's state so often (default: 5 minutes)"
    )
    for name, words in {"resume": "go on where a run with the same arguments was stopped", **MEMORY}.items():
        flags.add_argument(f"--{name}", action="store_true", help=words)
    flags.add_argument("--mixed_precision", choices=["no", "bf16"], help="as accelerate's (default: its own)")
    flags.add_argument("--effort", choices=get_args(Effort), default="light", help="what scales the budgets not given")
    return flags


def parser(text: str | None, bits: str, name: str, method: str | None = None) -> argparse.ArgumentParser:
    """The flags of a recipe that makes one student; with a `method` also one for each of its options, at effort
    "light"."""
    flags = blank(text)
    flags.set_defaults(name=name, method=method, room="vision" if method is None else "language")
    flags.add_argument("--bits", default=bits, help="see zsaq.QuantConfig.parse (default: %(default)s)")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--trackers", nargs="*", default=[], help="accelerate's trackers by name, such as tensorboard")
    flags.add_argument("--output_dir", default=f"outputs/{name}", help="(default: %(default)s)")
    flags.add_argument("--push_to_hub", metavar="ID", help="also publish the model, with a card, as user/name")
    flags.add_argument("--license", help="the teacher's licence, where its own card tells none")
    if method is None:
        flags.add_argument("--preset", help="what the bits mean; default: the method's own")
        return flags
    flags.add_argument("--generator", help="any causal LM, folder or Hub id (default: the recipe's own)")
    writing_flags(flags)
    flags.add_argument("--teacher_bits", type=int, choices=[8, 4], help="the teacher answers in few bits: bitsandbytes")
    for option, value in methods()["language"][method].options("light").items():
        if isinstance(value, bool):
            flags.add_argument(f"--{option}", action="store_true", default=None)
        else:
            flags.add_argument(f"--{option}", type=value_of, help=f"(default: {'none' if value is None else value})")
        flags.get_default("own").append(option)
    return flags


def writing_flags(flags: argparse.ArgumentParser) -> None:
    """What methods read: a corpus, or what a generator is asked for; see `written`."""
    flags.add_argument("--corpus", help="text that methods read: what `zsaq synthesize` wrote, folder or Hub id")
    flags.add_argument("--prompt", action="append", metavar="TEXT", help="what the generator is asked for; repeatable")
    flags.add_argument("--base", help="the teacher's public base, if its card names none")


def written(args: argparse.Namespace) -> dict[str, Any]:
    """Those of `writing_flags` that were given, as `zsaq.quantize` takes them."""
    given = {"corpus": args.corpus, "prompts": args.prompt, "base": args.base}
    return {name: value for name, value in given.items() if value is not None}


def parse(flags: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments; what was given of the method's options, by flag or not, as `args.options`."""
    args, words = flags.parse_known_args(argv)
    try:
        args.options = options_of(words)
    except ValueError as error:
        flags.error(str(error))
    args.options |= {name: vars(args)[name] for name in args.own if vars(args)[name] is not None}
    return args


def table_parser(text: str | None, bits: str, room: str) -> argparse.ArgumentParser:
    """The flags of a recipe that compares methods of "language" or of "vision"."""
    flags, names = blank(text), list(methods()[room])
    flags.set_defaults(room=room)
    flags.add_argument("--bits", nargs="+", default=[bits])
    flags.add_argument("--methods", nargs="+", required=True, choices=names, metavar="METHOD", help=", ".join(names))
    flags.add_argument("--seeds", nargs="+", type=int, default=[0])
    flags.add_argument("--preset", help="images: what the bits mean; default: each method's own")
    flags.add_argument("--output_dir", required=True)
    return flags


@contextmanager
def session(args: argparse.Namespace, teacher: str | None = None) -> Iterator[Loop]:
    """A loop over all processes, on a terminal that shows our own lines alone; an error that a user can mend is told in
    one line, with exit code 2, an output folder that cannot be first of all, then what `check_words` sees. `teacher`:
    its path or id, if it has one. Trackers write beside the folder."""
    with told(), quiet():
        (ready_comparison if "methods" in vars(args) else ready_target)(args.output_dir)
        check_words(args)
        check_publishing(vars(args).get("push_to_hub"), vars(args).get("license"), teacher)
        options = {"mixed_precision": args.mixed_precision, "project_dir": f"{args.output_dir}-trackers"}  # not in it
        accelerator = processes(args.trackers, **options)
        if args.trackers:
            accelerator.init_trackers(args.name, {key: str(value) for key, value in vars(args).items()})
        yield Loop(accelerator, recompute=args.recompute, eight_bit=args.adamw_8bit, shared=args.shared)
        accelerator.end_training()


def main(
    args: argparse.Namespace, loop: Loop, subject: Mapping[str, Any], *, baselines: Sequence[str] = (), recipe: str
) -> None:
    """A recipe: quantize the subject, save, draw, show, and publish if asked."""
    flags = ("output_dir", "push_to_hub", "method", "effort", "seed", "license", "preset", "checkpoint_every", "resume")
    known = {name: vars(args)[name] for name in flags} | {"config": args.bits, "recipe": Path(recipe), **subject}
    student = run(**beside(args.options, known | {"loop": loop, "baselines": baselines}))
    if loop.accelerator.is_main_process:
        show(student, f"{args.name}, {args.bits}")


def run(
    model: Any, config: Any, output_dir: str | Path, *, push_to_hub: str | None = None, license: str | None = None,
    loop: Loop | None = None, recipe: Path | None = None, **options: Any,
) -> Any:  # fmt: skip
    """`zsaq.quantize(model, config, **options)`, saved in `output_dir` with curves.png; the student.

    The run's state is kept beside it, in `output_dir`-checkpoint, until the student is saved; see `zsaq.quantize`.
    `push_to_hub`: also published there; `recipe`: the script, whose name and hash the results tell. Raises ValueError
    before anything is spent for a folder that holds something else than a student of zsaq, for one where not as many
    bytes can be written as the float model has, and for a repository that cannot be written to; and when training
    diverges, naming the folder where the last good student is (a baseline's is not kept). Where the student cannot be
    saved in `output_dir` all the same, the error names the folder where it is.
    """
    target, loop = ready_target(output_dir, float_bytes(model)), loop or Loop()
    kept = target.with_name(f"{target.name}-checkpoint")
    check_publishing(push_to_hub, license, None if isinstance(model, nn.Module) else model)
    main = loop.accelerator.is_main_process
    with tempfile.TemporaryDirectory(prefix="zsaq-") as temporary:
        steps = Path(temporary)
        try:
            student = quantize(
                model, config, loop=dataclasses.replace(loop, folder=steps), license=license, checkpoint=kept, **options
            )
        except NotFinite as error:
            if not main or not isinstance(error.student, PreTrainedModel) or not alone(error.student):
                raise
            last = rescued(partial(save, error.student), target, "last-good")
            where = "could not be saved" if last is None else f"is in {last}"
            if last is not None:  # a run that goes on from what is kept would end the same
                shutil.rmtree(kept, ignore_errors=True)
            raise ValueError(f"{error}. The student as it was after its last good step {where}") from error
        if recipe is not None:
            digest = hashlib.sha256(recipe.read_bytes()).hexdigest()
            noted(student, recipe=f"recipes/{recipe.name}", recipe_sha256=digest)
        student: Any = made_whole(student, steps / "student")
        if main:
            logged = any(each.stat().st_size for each in steps.glob("*.jsonl"))  # by a method that takes steps
            if logged and find_spec("matplotlib"):
                try:
                    draw_curves(steps)
                except (OSError, ValueError) as error:  # the student shall not be lost for them
                    say(f"There are no curves: {error}")
            save_or_rescue(student.save_pretrained, target)
            shutil.rmtree(kept, ignore_errors=True)
            say(f"The model, results.json, curves and the steps' numbers are in {target}")
            if push_to_hub is not None:
                say(student.push_to_hub(push_to_hub, license=license))
        loop.accelerator.wait_for_everyone()
    return student


def table(args: argparse.Namespace, loop: Loop, subject: Mapping[str, Any]) -> None:
    """A comparison: its runs in the output folder, with table.md, table.csv and table.png, and the table on stdout."""
    known = {
        "configs": args.bits, "methods": args.methods, "seeds": args.seeds, "folder": args.output_dir, "loop": loop,
        "effort": args.effort, "preset": args.preset, "checkpoint_every": args.checkpoint_every, **subject,
    }  # fmt: skip
    runs = compare(**beside(args.options, {key: value for key, value in known.items() if key != "data"}))
    if loop.accelerator.is_main_process:
        runs.write(args.output_dir)
        printed(runs.table().to_terminal(f"{args.output_dir}, also as table.md and table.csv"))


def printed(table: Any) -> None:
    """On stdout, not cut where that is no terminal."""
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 200).print(table)


def show(student: Any, title: str) -> None:
    """The rows of the student's results on stdout: scores, bytes, seconds."""
    rows = [
        {"name": row.name, **row.scores, "bytes": row.bytes, "seconds": f"{row.seconds:.1f}"}
        for row in student.zsaq.results.rows
    ]
    printed(Table(rows).to_terminal(title))
