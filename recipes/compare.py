"""The tables of language: several methods, one teacher, several bits and seeds; last iterate, mean and spread.

    python recipes/compare.py classifier --teacher DIR --task sst2 --data_dir DIR --split validation+test \\
        --generator DIR --bits w2a8 w4a8 --seeds 0 1 2 --steps 120 --output_dir outputs/sst2
    python recipes/compare.py causal --teacher DIR --text FILE --real_text FILE --bits w4a8 --output_dir outputs/s

Every finished run is a line of `runs.jsonl`, and a run that stands there is not repeated. Any option of the methods may
be given, such as --steps 120 (`zsaq methods NAME` lists them); --effort (default here: light) scales the rest.
"""

from zsaq import launch
from zsaq.beforehand import check_real
from zsaq.script import check_taken, positive, told

with told():
    from examples import subjects

TAKEN = {
    "embedded": ("generator",),
    "classifier": ("teacher", "task", "data_dir", "split", "generator"),
    "causal": ("teacher", "text", "real_text", "window", "max_windows", "separator", "generator"),
}


def main() -> None:
    parser = launch.table_parser(__doc__, "w2a8", "language")
    parser.add_argument("kind", choices=TAKEN)
    parser.add_argument("--teacher")
    parser.add_argument("--task")
    parser.add_argument("--data_dir")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--text", help="causal: what the perplexity is measured on")
    parser.add_argument("--real_text", help="causal: text for the rows with real data")
    parser.add_argument("--window", type=positive, default=256)
    parser.add_argument("--max_windows", type=positive)
    parser.add_argument("--separator")
    parser.add_argument("--generator")
    launch.writing_flags(parser)
    args = launch.parse(parser)
    check_taken(parser, None, args.kind, TAKEN)
    needed = {"embedded": (), "classifier": ("teacher", "task"), "causal": ("teacher", "text")}[args.kind]
    if missing := [f"--{name}" for name in needed if vars(args)[name] is None]:
        parser.error(f"{args.kind} needs {' and '.join(missing)}")
    if args.kind == "causal":
        check_real(parser, args, "real_text")
        if args.real_text and args.window < 4:
            parser.error(f"--window {args.window} leaves no tokens for rows of --real_text: give 4 or more")
    with launch.session(args) as loop:
        accelerator = loop.accelerator
        if args.kind == "embedded":
            subject = subjects.python_docs(accelerator, args.generator)
        elif args.kind == "classifier":
            subject = subjects.glue(accelerator, args.teacher, args.task, args.data_dir, args.split, args.generator)
        else:
            limits = args.window, args.max_windows, args.separator
            subject = subjects.causal(accelerator, args.teacher, args.text, *limits, args.generator, args.real_text)
        launch.table(args, loop, subject | launch.written(args))


if __name__ == "__main__":
    with told():
        main()
