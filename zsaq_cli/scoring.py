"""`zsaq evaluate`: a student on real data, beside its teacher; the scores can be kept in its results.json."""

import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zsaq_cli.answer import FAILED, FINE, Json, Outcome, answer, facts_table

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def evaluate(
    model: Annotated[str, typer.Argument(metavar="DIR", help="Student, or any model: folder or Hub id.")],
    task: Annotated[str | None, typer.Option("--task", help="GLUE task: sst2, stsb, mrpc, ...")] = None,
    text: Annotated[str | None, typer.Option("--text", help="UTF-8 text file for the perplexity.")] = None,
    images: Annotated[
        str | None, typer.Option("--images", help="Labelled images: class folders, parquet, or Hub id.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option("--teacher", help="The model it came from: adds agreement, KL and its score.")
    ] = None,
    data_dir: Annotated[
        str | None, typer.Option("--data_dir", help="With --task: folder with the split; default: the Hub's.")
    ] = None,
    split: Annotated[str | None, typer.Option("--split", help="Default: validation.")] = None,
    window: Annotated[int | None, typer.Option("--window", help="With --text: tokens a window.")] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Only the first so many rows, windows or images.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch_size", min=1)] = 64,
    at_least: Annotated[float | None, typer.Option("--at_least", help="Exit code 1 for a lower score.")] = None,
    at_most: Annotated[float | None, typer.Option("--at_most", help="Exit code 1 for a higher score.")] = None,
    record: Annotated[bool, typer.Option("--record", help="Keep the scores in DIR's results.json.")] = False,
    as_json: Json = False,
) -> None:
    """Score a student on a GLUE task, a text or images, alone or beside its teacher.

    Give one of --task (the task's metrics), --text (perplexity, convention "gptq") and --images (top-1). Scores are
    fractions. This is the only command that reads real data.

    Examples:

    \b
    zsaq evaluate sst2-w4a8 --task sst2 --teacher textattack/bert-base-uncased-SST-2
    zsaq evaluate gpt2-w4a8 --text wiki.txt --teacher gpt2 --at_most 35
    zsaq evaluate resnet-18-w4a4 --images imagenet/val --at_least 0.6 --record
    """

    def work() -> Outcome:
        if [task, text, images].count(None) != 2:
            raise ValueError("give one of --task, --text and --images: a score is of one kind of data")
        if data_dir is not None and task is None:
            raise ValueError("--data_dir goes with --task")
        if record and not (Path(model) / "results.json").is_file():
            raise ValueError(f"--record needs {model}/results.json, which zsaq quantize writes; leave --record off")
        if task is not None:
            told = glue(model, teacher, task, data_dir, split or "validation", limit, batch_size)
        elif text is not None:
            told = perplexity(model, teacher, text, window, limit)
        else:
            assert images is not None
            told = pictures(model, teacher, images, split, limit, batch_size)
        score = told["values"][told["score"]]
        holds = (at_least is None or score >= at_least) and (at_most is None or score <= at_most)
        bounds = {"at_least": at_least, "at_most": at_most, "holds": holds}
        facts = {"model": model, "teacher": teacher, "data": told["data"], **told["values"], **bounds}
        if record:
            keep(Path(model), told)
        shown = {k: v for k, v in facts.items() if v is not None}
        return Outcome(facts, (facts_table("scores", shown),), FINE if holds else FAILED)

    answer(as_json, work)


def opened(source: str, auto: Any) -> "PreTrainedModel":
    """A student through `zsaq.load`, which verifies it; any other model as transformers loads it."""
    import torch
    from transformers import AutoConfig

    import zsaq
    from zsaq.eval.pretrained import load_model

    quantization = AutoConfig.from_pretrained(source, trust_remote_code=False).to_dict().get("quantization_config")
    ours = isinstance(quantization, dict) and quantization.get("quant_method") == "zsaq"
    model = zsaq.load(source, auto) if ours else load_model(source, auto)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")  # pyright: ignore[reportArgumentType]


def glue(
    model: str, teacher: str | None, task: str, data_dir: str | None, split: str, limit: int | None, batch_size: int
) -> dict[str, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from zsaq.eval.scoring import score
    from zsaq.eval.tasks import HUB, find, read_rows

    spec = find(task)
    rows = read_rows(spec, split, data_dir)[:limit]
    student = opened(model, AutoModelForSequenceClassification)
    other = opened(teacher, AutoModelForSequenceClassification) if teacher else None
    values = score(student, AutoTokenizer.from_pretrained(model), spec, rows, other, batch_size=batch_size)
    data: dict[str, Any] = {"name": f"GLUE {task}", "split": split + (f", first {limit} rows" if limit else "")}
    if data_dir is None and limit is None:
        data |= {"id": HUB, "task": spec.config}
    return {"values": {**values, "samples": len(rows)}, "score": "score", "data": data}


def perplexity(model: str, teacher: str | None, text: str, window: int | None, limit: int | None) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from zsaq.eval.perplexity import perplexity, tokenize

    if not Path(text).is_file():
        raise ValueError(f"{text} is no file: give a UTF-8 text file")
    student = opened(model, AutoModelForCausalLM)
    other = opened(teacher, AutoModelForCausalLM) if teacher else None
    ids = tokenize(AutoTokenizer.from_pretrained(model), Path(text).read_text(encoding="utf-8"))
    window = window or min(2048, student.config.max_position_embeddings)
    values = perplexity(student, ids, window, teacher=other, max_windows=limit)
    return {"values": {**values, "window": window}, "score": "perplexity", "data": {"name": Path(text).name}}


def pictures(
    model: str, teacher: str | None, images: str, split: str | None, limit: int | None, batch_size: int
) -> dict[str, Any]:
    from PIL import Image
    from torch import Tensor
    from transformers import AutoModelForImageClassification

    from zsaq.eval.imagenet import DEVIATION, MEAN, batches, processor_of, score
    from zsaq.eval.images import Source, class_order, read

    student = opened(model, AutoModelForImageClassification)
    other = opened(teacher, AutoModelForImageClassification) if teacher else None
    processor = processor_of([name for name in (model, teacher) if name], None, None, MEAN, DEVIATION)
    found = read(Source(images, split))
    order, _ = class_order(found.names, student.config)
    mode = "L" if student.config.to_dict().get("num_channels", 3) == 1 else "RGB"

    def transform(image: Image.Image) -> Tensor:
        return processor(images=image.convert(mode), return_tensors="pt")["pixel_values"][0]

    stream = batches(islice(found, limit), transform, order, batch_size, (0, 1), 2)
    values = score(student, stream, other)
    data = {"name": Path(images).name, "split": split}
    return {"values": values, "score": "top1", "data": data}


def keep(folder: Path, told: dict[str, Any]) -> None:
    """Put the scores into the rows of teacher and student in results.json, and seal the folder again."""
    from zsaq.io.checksums import check, seal

    check(folder)
    path = folder / "results.json"
    results = json.loads(path.read_text(encoding="utf-8"))
    values = {k: v for k, v in told["values"].items() if isinstance(v, float)}
    own = {k: v for k, v in values.items() if not k.startswith("teacher_")}
    teacher = {k.removeprefix("teacher_"): v for k, v in values.items() if k.startswith("teacher_")}
    for row in results["rows"]:
        row |= {"teacher": teacher, results["method"]: own}.get(row["name"], {})
    results |= {"metrics": {name: name for name in own if name != "score"}, "data": told["data"]}
    path.write_text(json.dumps(results, indent=1), encoding="utf-8")
    seal(folder)
