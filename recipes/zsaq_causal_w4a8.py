"""ZSAQ on a causal language model (GPT-2, OPT, Llama-type): 4-bit weights, 8-bit inputs, no data.

    accelerate launch recipes/zsaq_causal_w4a8.py --teacher DIR_OR_ID --text FILE

The generator is a copy of the teacher unless --generator names another. --text serves the perplexity alone.
"""

from job import causal
from zsaq_bert_w2a8 import parse, parser, run

from zsaq.train.trainer import processes


def main() -> None:
    made = parser(__doc__, "w4a8")
    made.add_argument("--teacher", required=True, help="causal language model, folder or Hub id")
    made.add_argument("--text", required=True, help="text file for the perplexity")
    made.add_argument("--window", type=int, default=256, help="tokens a window (default: %(default)s)")
    made.add_argument("--max_windows", type=int, help="measure on the first of them only")
    made.add_argument("--separator", help="what stands between the documents of --text, such as '<|endoftext|>'")
    args = parse(made)
    name = "zsaq_causal_w4a8"
    args.output_dir = args.output_dir or f"outputs/{name}"
    accelerator = processes(args.trackers, mixed_precision=args.mixed_precision, project_dir=args.output_dir)
    if args.lora and not args.generator:
        made.error("--lora needs --generator: the copy of the teacher is trained whole")
    job = causal(
        args.teacher, args.text, args.window, args.max_windows, args.separator, args.generator, None, accelerator,
        args.lora,
    )  # fmt: skip
    run(job, args, name, accelerator)


if __name__ == "__main__":
    main()
