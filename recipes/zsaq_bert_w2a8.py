"""ZSAQ on a BERT classifier: 2-bit weights, 8-bit inputs, no data.

    accelerate launch recipes/zsaq_bert_w2a8.py
    accelerate launch recipes/zsaq_bert_w2a8.py --teacher DIR_OR_ID --task sst2 --data_dir DIR --generator DIR_OR_ID

Without arguments it runs the embedded default, which downloads nothing: a small BERT that this machine trains once on
CPython's own documentation, and a small OPT that it trains on CPython's comments. --data_dir serves the scores alone.
Ends with a table, and a folder: the model, results.json, curves.png, and a JSON line for every step.
"""

from zsaq import launch
from zsaq.script import given, told

with told():
    from examples import subjects


def main(bits: str = "w2a8", name: str = "zsaq_bert_w2a8", text: str | None = __doc__) -> None:
    parser = launch.parser(text, bits, name, method="zsaq")
    parser.add_argument("--teacher", help="fine-tuned BERT-type model, folder or Hub id (default: the embedded one)")
    parser.add_argument("--task", help="its GLUE task, for the scores: sst2, stsb, mrpc, ...")
    parser.add_argument("--data_dir", help="folder with the task's validation split; default: the Hub's nyu-mll/glue")
    parser.add_argument("--split", default="validation", help="split to score, or several: validation+test")
    args = launch.parse(parser)
    of_teacher = given(parser, None, ("data_dir", "split", "teacher_bits"))
    if (args.teacher is None) != (args.task is None) or (of_teacher and not args.teacher):
        parser.error(
            "--teacher and --task go together, --data_dir, --split and --teacher_bits with them; give none for the "
            "embedded default"
        )
    with launch.session(args, args.teacher) as loop:
        if args.teacher is None:
            subject = subjects.python_docs(loop.accelerator, args.generator)
        else:
            subject = subjects.glue(
                loop.accelerator, args.teacher, args.task, args.data_dir, args.split, args.generator
            )
        launch.main(
            args, loop, subject | {"teacher_bits": args.teacher_bits} | launch.written(args),
            baselines=("rtn-minmax", "rtn"), recipe=__file__,
        )  # fmt: skip


if __name__ == "__main__":
    with told():
        main()
