"""`zsaq quantize`, `zsaq compare` and `zsaq methods`: thin over `zsaq.quantize`, `zsaq.compare` and `zsaq.methods`."""

from collections import Counter
from typing import Annotated, Any

import typer
from rich.markup import escape

from zsaq_cli.answer import Json, Outcome, answer, hushed
from zsaq_cli.given import numbers, subject, with_ends
from zsaq_cli.knowing import Base

Effort = Annotated[
    str,
    typer.Option(
        "--effort",
        help="light (minutes), default (about an hour) or best (the paper's); weights of a causal LM alone: seconds, "
        "minutes, or training.",
    ),
]
Generator = Annotated[
    str | None,
    typer.Option("--generator", help="Text: causal model that writes; default: the teacher, or SmolLM2-135M-Instruct."),
]
Pair = Annotated[bool, typer.Option("--text_pair", help="Text: the teacher reads pairs of texts.")]
Corpus = Annotated[
    str | None, typer.Option("--corpus", help="Text that methods read: what zsaq synthesize wrote; folder or Hub id.")
]
Prompts = Annotated[
    list[str] | None, typer.Option("--prompt", help="Text: what the generator is asked for; may be repeated.")
]
Preset = Annotated[str | None, typer.Option("--preset", help="Images: what the bits mean; default: the method's own.")]
Size = Annotated[
    int | None,
    typer.Option("--size", min=1, max=2**14, help="Images: their side in pixels, if nothing in MODEL names it."),
]
MANY = 2**31 - 1
Every = Annotated[
    int | None,
    typer.Option("--checkpoint_every", help="Keep the run's state every so many steps; default: every five minutes."),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on where a run with the same arguments was stopped; comparisons always do.")
]
OPEN: Any = {"allow_extra_args": True, "ignore_unknown_options": True}  # a method's own options


def quantize(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Float model: folder or Hub id.", show_default=False)],
    output_dir: Annotated[
        str | None, typer.Option("--output_dir", help="Where the student goes; default: a new folder, NAME-BITS.")
    ] = None,
    bits: Annotated[
        str | None,
        typer.Option(
            "--bits",
            help="w4a16e8h8g32 (e: the table's bits, h: the head's), w2a8, w2a8s (s: static inputs), w4a8g128; images: "
            "w4a4, ...; 3.2: bits a weight on the whole, each layer's are chosen; default: by the kind of model.",
        ),
    ] = None,
    target_mb: Annotated[
        float | None, typer.Option("--target_mb", help="Text: megabytes that the student may take, in place of --bits.")
    ] = None,
    embedding: Annotated[int | None, typer.Option("--embedding", min=2, max=8, help="Text: the table's bits.")] = None,
    head: Annotated[int | None, typer.Option("--head", min=2, max=8, help="Text: the head's bits.")] = None,
    method: Annotated[str, typer.Option("--method", help="A name of `zsaq methods`, or auto.")] = "auto",
    effort: Effort = "default",
    generator: Generator = None,
    corpus: Corpus = None,
    prompts: Prompts = None,
    base: Base = None,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    text_pair: Pair = False,
    preset: Preset = None,
    size: Size = None,
    checkpoint_every: Every = None,
    resume: Resume = False,
    license: Annotated[
        str | None, typer.Option("--license", help="Of MODEL, if its card names none; for the student's card.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Quantize MODEL without any data and save the student, whole and verified.

    No data is asked for and none is read; the kind of model comes from its own config. With nothing but MODEL a causal
    language model gets weights of 4 bits in groups of 32 by GPTQ on text that it writes itself, with table and head of
    8 bits, and at the end a line says how near the student came. Every option of the method can be given too, such as
    --steps 200 (zsaq methods NAME lists them); --effort scales those that are not.

    Examples:

    \b
    zsaq quantize HuggingFaceTB/SmolLM2-135M-Instruct
    zsaq quantize HuggingFaceTB/SmolLM2-135M-Instruct --target_mb 60
    zsaq quantize textattack/bert-base-uncased-SST-2 --bits w2a8 --method zsaq --output_dir sst2-w2a8
    zsaq quantize gpt2 --bits w4a8 --output_dir gpt2-w4a8 --effort light
    zsaq quantize microsoft/resnet-18 --bits w4a4 --method genie --steps 500 --output_dir resnet-18-w4a4
    """

    def work() -> Outcome:
        from zsaq import launch, script
        from zsaq.io.target import new_folder
        from zsaq.io.teacher import name_of

        folder = output_dir
        if folder is None:
            named = bits or ("student" if target_mb is None else f"{target_mb:g}MB")
            folder = new_folder(name_of(model).split("/")[-1], named)
        student = launch.run(
            model, with_ends(bits, embedding, head, target_mb), folder, target_mb=target_mb, method=method,
            effort=effort, seed=seed, license=license,
            **subject(model, generator, text_pair, size, corpus, prompts, base), preset=preset,
            checkpoint_every=checkpoint_every, resume=resume, **script.options_of(context.args),
        )  # fmt: skip
        results = student.zsaq.results
        facts = {
            "folder": folder, "model": model, "bits": bits, "method": results.method, "seed": seed,
            "effort": effort, "budget": results.budget, "zero_shot": results.zero_shot,
            "seconds": results.student.seconds, "bytes": results.student.bytes, "coverage": results.coverage,
            "config": results.config.to_dict(), "preset": results.preset,
            "own_text": results.own_text,
        }  # fmt: skip
        return student_told(facts)

    answer(as_json, hushed(work))


def student_told(facts: dict[str, Any]) -> Outcome:
    """Of a student that was made: its `facts`, and on a terminal its coverage counted and the rest of them."""
    from zsaq.report.table import Table

    counts = Counter(facts["coverage"].values()).most_common()
    few = {key: value for key, value in facts.items() if key not in ("coverage", "config")}
    shown = (
        Table([{"modules": count, "how": how} for how, count in counts]).to_terminal("coverage"),
        Table.of_facts(few).to_terminal("student"),
        "Next: zsaq verify, zsaq evaluate, zsaq bench, zsaq report",
    )
    return Outcome(facts, shown)


def compare(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Float model: folder or Hub id.", show_default=False)],
    methods: Annotated[
        str, typer.Option("--methods", help="Names of `zsaq methods`, with commas.", show_default=False)
    ],
    output_dir: Annotated[
        str, typer.Option("--output_dir", help="Where the runs and the table go.", show_default=False)
    ],
    bits: Annotated[str, typer.Option("--bits", help="One or several, with commas.")] = "w4a8",
    seeds: Annotated[str, typer.Option("--seeds", help="With commas.")] = "0",
    effort: Effort = "default",
    generator: Generator = None,
    corpus: Corpus = None,
    prompts: Prompts = None,
    base: Base = None,
    text_pair: Pair = False,
    preset: Preset = None,
    size: Size = None,
    checkpoint_every: Every = None,
    resume: Resume = True,
    task: Annotated[str | None, typer.Option("--task", help="Score: GLUE task: sst2, stsb, mrpc, ...")] = None,
    text: Annotated[str | None, typer.Option("--text", help="Score: UTF-8 text file for the perplexity.")] = None,
    images: Annotated[str | None, typer.Option("--images", help="Score: class folders, parquet, or Hub id.")] = None,
    sts: Annotated[str | None, typer.Option("--sts", help="Score: pairs of texts, file or folder.")] = None,
    data_dir: Annotated[str | None, typer.Option("--data_dir", help="With --task: folder with the split.")] = None,
    split: Annotated[str | None, typer.Option("--split", help="Default: validation; with --sts: test.")] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, max=MANY, help="Score on so many rows, windows, images.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare methods on MODEL: a student for each of --bits, --methods and --seeds.

    Give one of --task, --text, --images and --sts for the scores, and for nothing else. Finished runs are kept in
    --output_dir and not repeated: stop and go on at will. table.md, table.csv and table.png are made at the end.

    Examples:

    \b
    zsaq compare gpt2 --bits w4a8,w2a8 --methods rtn,gptq --seeds 0,1,2 --text wiki.txt --output_dir outputs/gpt2
    zsaq compare sst2-bert --methods rtn,gptq,zsaq --task sst2 --steps 120 --output_dir outputs/sst2
    """

    def work() -> Outcome:
        import zsaq
        from zsaq import script
        from zsaq.io.target import ready_comparison
        from zsaq.io.teacher import load_teacher
        from zsaq_cli.scoring import scorer

        ready_comparison(output_dir)
        teacher = load_teacher(model)
        notes: list[str] = []
        score, _ = scorer(
            teacher, model, task, text, images, data_dir, split, sts=sts, size=size, limit=limit, tell=notes.append
        )
        table = zsaq.compare(
            model, bits.split(","), methods.split(","), seeds=numbers(seeds), score=score, folder=output_dir,
            effort=effort, preset=preset, checkpoint_every=checkpoint_every,  # pyright: ignore[reportArgumentType]
            **subject(model, generator, text_pair, size, corpus, prompts, base), **script.options_of(context.args),
        )  # fmt: skip
        table.write(output_dir)
        shown = table.table().to_terminal(f"{output_dir}, also as table.md and table.csv")
        return Outcome({"folder": output_dir, "rows": table.rows(), "notes": notes}, (shown, *map(escape, notes)))

    answer(as_json, hushed(work))
