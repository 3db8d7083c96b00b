"""ZSAQ on a causal language model (GPT-2, OPT, Llama-type): 4-bit weights, 8-bit inputs, no data.

    accelerate launch recipes/zsaq_causal_w4a8.py --teacher DIR_OR_ID --text FILE

The generator is the teacher itself unless --generator names another. --text serves the perplexity alone.
"""

from zsaq import launch
from zsaq.script import positive, told

with told():
    from examples import subjects


def main() -> None:
    parser = launch.parser(__doc__, "w4a8", "zsaq_causal_w4a8", method="zsaq")
    parser.add_argument("--teacher", required=True, help="causal language model, folder or Hub id")
    parser.add_argument("--text", required=True, help="text file for the perplexity")
    parser.add_argument("--window", type=positive, default=256, help="tokens a window (default: %(default)s)")
    parser.add_argument("--max_windows", type=positive, help="measure on the first of them only")
    parser.add_argument("--separator", help="what stands between the documents of --text, such as '<|endoftext|>'")
    args = launch.parse(parser)
    with launch.session(args, args.teacher) as loop:
        limits = args.window, args.max_windows, args.separator
        subject = subjects.causal(loop.accelerator, args.teacher, args.text, *limits, args.generator)
        launch.main(
            args, loop, subject | {"teacher_bits": args.teacher_bits} | launch.written(args),
            baselines=("rtn-minmax", "rtn"), recipe=__file__,
        )  # fmt: skip


if __name__ == "__main__":
    with told():
        main()
