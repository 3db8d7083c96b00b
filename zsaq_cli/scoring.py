"""`zsaq evaluate`: a student on real data, beside its teacher; the scores can be kept in its results.json."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from zsaq_cli.answer import FAILED, FINE, Json, Outcome, answer, hushed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def evaluate(
    model: Annotated[str, typer.Argument(metavar="DIR", help="Student, or any model: folder or Hub id.")],
    task: Annotated[str | None, typer.Option("--task", help="GLUE task: sst2, stsb, mrpc, ...")] = None,
    text: Annotated[str | None, typer.Option("--text", help="UTF-8 text file for the perplexity.")] = None,
    images: Annotated[
        str | None, typer.Option("--images", help="Labelled images: class folders, parquet, or Hub id.")
    ] = None,
    sts: Annotated[
        str | None, typer.Option("--sts", help="Pairs of texts with scores: file, or folder with the split.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option("--teacher", help="The model it came from: adds agreement, KL and its score.")
    ] = None,
    data_dir: Annotated[
        str | None, typer.Option("--data_dir", help="With --task: folder with the split; default: the Hub's.")
    ] = None,
    split: Annotated[str | None, typer.Option("--split", help="Default: validation; with --sts: test.")] = None,
    window: Annotated[int | None, typer.Option("--window", help="With --text: tokens a window.")] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, max=2**31 - 1, help="Only the first so many rows, windows or images."),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch_size", min=1, max=2**20)] = 64,
    at_least: Annotated[float | None, typer.Option("--at_least", help="Exit code 1 for a lower score.")] = None,
    at_most: Annotated[float | None, typer.Option("--at_most", help="Exit code 1 for a higher score.")] = None,
    record: Annotated[bool, typer.Option("--record", help="Keep the scores in DIR's results.json.")] = False,
    as_json: Json = False,
) -> None:
    """Score a student on a GLUE task, a text, images or pairs of texts, alone or beside its teacher.

    Give one of --task (the task's metrics), --text (perplexity, convention "gptq"), --images (top-1) and --sts (rank
    correlation of embeddings' similarities). Scores are fractions; the bounds are of the first. Real data is read here
    and by zsaq compare, for scores alone.

    Examples:

    \b
    zsaq evaluate sst2-w4a8 --task sst2 --teacher textattack/bert-base-uncased-SST-2
    zsaq evaluate gpt2-w4a8 --text wiki.txt --teacher gpt2 --at_most 35
    zsaq evaluate minilm-w4a8 --sts stsb/test.parquet --teacher sentence-transformers/all-MiniLM-L6-v2
    zsaq evaluate resnet-18-w4a4 --images imagenet/val --at_least 0.6 --record
    """

    def work() -> Outcome:
        from zsaq.atomic import check_file
        from zsaq.report.table import Table

        if any(bound is not None and math.isnan(bound) for bound in (at_least, at_most)):
            raise ValueError("--at_least or --at_most is nan; give a number")
        if data_dir is not None and task is None:
            raise ValueError("--data_dir goes with --task")
        if record and not (Path(model) / "results.json").is_file():
            raise ValueError(f"--record needs {model}/results.json, which zsaq quantize writes; leave --record off")
        if record:
            check_file(Path(model) / "results.json")
        student, other = opened(model), opened(teacher) if teacher else None
        told: list[str] = []
        options = {"window": window, "limit": limit, "batch_size": batch_size, "tell": told.append}
        score, data = scorer(other, model, task, text, images, data_dir, split, sts=sts, student=student, **options)
        scores, own = {model: score(student)}, len(told)
        if teacher:
            scores[teacher] = score(other)
        notes = list(dict.fromkeys([*told[:own], *(f"teacher: {note}" for note in told[own:])]))
        first, value = next(iter(scores[model].items()))
        holds = (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
        facts = {
            "model": model, "teacher": teacher, "data": data, **scores[model],
            **{f"teacher_{name}": number for name, number in scores.get(teacher or "", {}).items()},
            "at_least": at_least, "at_most": at_most, "holds": holds, "notes": notes,
        }  # fmt: skip
        if record:
            keep(Path(model), scores[model], scores.get(teacher or ""), data)
        few = {name: fact for name, fact in facts.items() if name != "notes"}
        shown = (Table.of_facts(few).to_terminal("scores"), *map(escape, notes))
        return Outcome({**facts, "score": first}, shown, FINE if holds else FAILED)

    answer(as_json, hushed(work))


def opened(source: str) -> "PreTrainedModel":
    """A student through `zsaq.load`, which verifies it; any other model as transformers loads it. Raises ValueError for
    what is none."""
    import torch
    from transformers import AutoConfig

    import zsaq
    from zsaq.eval.pretrained import load_model
    from zsaq.foreign import made
    from zsaq.io.folder import place_of
    from zsaq.io.loading import class_of
    from zsaq.io.verifying import is_student
    from zsaq.sentence_files import fetch

    source = place_of(source)
    if is_student(source):
        model = zsaq.load(source)
    else:
        with made(source, "model"):
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        fetch(source)
        model = load_model(source, class_of(config, source))
    return model.to("cuda" if torch.cuda.is_available() else "cpu")  # pyright: ignore[reportArgumentType]


def scorer(
    teacher: Any, model: str, task: str | None, text: str | None, images: str | None, data_dir: str | None,
    split: str | None, *, sts: str | None = None, student: Any = None, size: int | None = None,
    window: int | None = None, limit: int | None = None, batch_size: int = 64, tell: Any = None,
) -> "tuple[Any, dict[str, Any]]":  # fmt: skip
    """A function that scores a model on one of the four kinds of data, beside the teacher if there is one, and what
    the data is called. `model`: a folder or id with the tokenizer or the image processor; `tell` takes notes, by
    default to stderr. Raises ValueError."""
    from zsaq.eval import scorers
    from zsaq.eval.images import ImageSource
    from zsaq.eval.pretrained import tokenizer_for
    from zsaq.eval.processing import DEVIATION, MEAN, processor_of
    from zsaq.eval.tasks import HUB, find_task, read_rows
    from zsaq.quant.positions import longest

    if [task, text, images, sts].count(None) != 3:
        raise ValueError("give one of --task, --text, --images and --sts: a score is of one kind of data")
    reader = student or teacher
    first = f", first {limit}" if limit else ""
    heard = {"tell": tell} if tell else {}
    if task is not None:
        spec, part = find_task(task), split or "validation"
        rows = read_rows(spec, part, data_dir)[:limit]
        data: dict[str, Any] = {"name": f"GLUE {task}", "split": part + (f"{first} rows" if limit else "")}
        if data_dir is None and limit is None:
            data |= {"id": HUB, "task": spec.config}
        return scorers.glue(spec, teacher, tokenizer_for(reader, model), rows=rows, **heard), data
    if text is not None:
        window = min(2048, longest(reader) or 2048) if window is None else window
        score = scorers.text(text, teacher, tokenizer_for(reader, model), window=window, max_windows=limit, **heard)
        return score, {"name": Path(text).name} | (
            {"split": f"first {limit} windows of {window} tokens"} if limit else {}
        )
    if sts is not None:
        options = {"split": split, "limit": limit, "batch_size": batch_size, **heard}
        part = (split or "test") if Path(sts).is_dir() else None
        name = Path(sts).resolve().name
        facts = {"name": name, "split": f"{part or 'all'}{first} pairs" if limit else part}
        return scorers.sts(sts, teacher, tokenizer_for(reader, model), **options), facts
    assert images is not None
    processor = processor_of([model], size, None, MEAN, DEVIATION)
    score = scorers.pictures(
        ImageSource(images, split), reader.config, processor, teacher, limit=limit, batch_size=batch_size, **heard
    )
    return score, {"name": Path(images).name, "split": f"{split or 'all'}{first} images" if limit else split}


def keep(folder: Path, student: dict[str, float], teacher: dict[str, float] | None, data: dict[str, Any]) -> None:
    """Put the scores into the rows of student and teacher in results.json."""
    from zsaq.io.record import read_results
    from zsaq.run import Data

    results = read_results(folder)
    scores = {results.method: student} | ({"teacher": teacher} if teacher else {})
    results.scored(scores, Data(**data)).write(folder)
