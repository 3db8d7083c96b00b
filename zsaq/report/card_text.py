"""A card as the Hub reads it: README.md with metadata and model-index, and .eval_results/*.yaml."""

import re
from collections import Counter
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml
from huggingface_hub.utils import yaml_dump
from torch import nn

from zsaq.quant.grid import describe
from zsaq.quant.model import coverage
from zsaq.quant.plan import plan_of
from zsaq.quant.sizes import bits_per_weight
from zsaq.report.card import Card, MetricScore
from zsaq.report.table import Table, code, link, markdown, printable

LIBRARY: Final = "zsaq"  # not "transformers": the Hub's snippet for that would not import zsaq
PIPELINE_TAGS: Final = {  # how a transformers class is called at its end -> the Hub's pipeline_tag
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForImageClassification": "image-classification",
}
PROCESSORS: Final = {  # file -> what reads it
    "tokenizer_config.json": ("tokenizer", "AutoTokenizer"),
    "preprocessor_config.json": ("processor", "AutoImageProcessor"),
}
NO_DATA: Final = (
    "**Zero-shot: made without any data.** No real sample, label or validation score reached synthesis, training, "
    "calibration or tuning. Scores, where there are any, were taken on the finished model."
)
WITH_DATA: Final = "**Not zero-shot:** real data was used to make this model. It is a reference for comparisons."
LIMITS: Final = (
    "`import zsaq` has to stand before any `from_pretrained`; `zsaq.load` does it and verifies the files.",
    "In PyTorch the packed weights are unpacked before they are multiplied: the files are small, but no speed is "
    "promised.",
    "What the base model does wrong the student does too, and quantization adds errors of its own: measure it on your "
    "own task.",
)


def pipeline_tag(model: nn.Module) -> str | None:
    """The Hub's task of a transformers model, None where its class does not tell one."""
    return next((tag for end, tag in PIPELINE_TAGS.items() if type(model).__name__.endswith(end)), None)


def metadata(card: Card, repo_id: str, model: nn.Module) -> ModelCardData:
    config, tag = plan_of(model).config, pipeline_tag(model)
    bits = [f"{config.weight.bits}-bit"] if config.weight else []
    facts = {
        "zero_shot": card.zero_shot, "real_data": "none" if card.zero_shot else "used", "method": card.method,
        "quantization": config.to_dict(), "seeds": list(card.seeds), "budget": dict(card.budget) or None,
        "base_revision": card.base.revision, "base_sha256": card.base.sha256,
        "recipe": card.recipe, "recipe_sha256": card.recipe_sha256, "versions": dict(card.versions) or None,
    }  # fmt: skip
    known = {key: value for key, value in facts.items() if value is not None}
    extra: dict[str, Any] = plain({LIBRARY: known, **card.base.license})
    results = [
        EvalResult(
            task_type=tag or "other",
            dataset_type=plain(card.data.id) or re.sub(r"\W+", "-", card.data.name.lower()).strip("-") or "unnamed",
            dataset_name=plain(card.data.name),
            dataset_config=plain(card.data.task),
            dataset_split=plain(card.data.split),
            metric_type=plain(score.metric),
            metric_value=score.mean,
            metric_args={"seeds": list(card.seeds)} | ({} if score.spread is None else {"std": score.spread}),
        )
        for score in student_scores(card)
        if card.data is not None
    ]
    return ModelCardData(
        base_model=card.base.id,
        base_model_relation="quantized" if card.base.id else None,
        library_name=LIBRARY,
        tags=[LIBRARY, "quantization", *bits, *(["data-free", "zero-shot-quantization"] if card.zero_shot else [])],
        pipeline_tag=tag,
        language=plain(card.language),
        metrics=[plain(score.metric) for score in student_scores(card)] or None,
        model_name=repo_id.rpartition("/")[2],
        eval_results=results or None,
        **extra,
    )


def plain(value: Any) -> Any:
    """JSON whose texts are single lines of what can be shown, for YAML that others read."""
    if isinstance(value, dict):
        return {printable(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return printable(value) if isinstance(value, str) else value


def student_scores(card: Card) -> list[MetricScore]:
    """The student's scores, in the order of the run."""
    return [score for score in card.scores if score.model == card.method]


def score_table(card: Card) -> Table:
    """A row for each model, a column for each metric."""
    rows: dict[str, dict[str, str]] = {}
    for score in card.scores:
        name = f"{score.model} (this model)" if score.model == card.method else score.model
        rows.setdefault(name, {"model": name})[score.metric] = str(score)
    return Table(list(rows.values()))


def evaluation(card: Card) -> str:
    assert card.data is not None
    where = " ".join(filter(None, (markdown(card.data.name), card.data.split and f"({markdown(card.data.split)})")))
    over = f"seed {card.seeds[0]}"
    if len(card.seeds) > 1:
        listed = ", ".join(map(str, card.seeds))
        over = f"mean ± standard deviation over seeds {listed}; the weights are those of seed {card.seeds[0]}"
    return f"On {where}; {over}. The teacher is the base model in floats.\n\n{score_table(card).to_markdown()}"


def snippet(repo_id: str, folder: Path) -> str:
    lines = ["import zsaq"]
    readers = [how for file, how in PROCESSORS.items() if (folder / file).is_file()]
    if readers:
        lines.append(f"from transformers import {', '.join(reader for _, reader in readers)}")
    lines += ["", f'model = zsaq.load("{repo_id}")']
    lines += [f'{name} = {reader}.from_pretrained("{repo_id}")' for name, reader in readers]
    return "```python\n" + "\n".join(lines) + "\n```"


def weights(card: Card, folder: Path, model: nn.Module) -> str:
    config, counts = plan_of(model).config, Counter(coverage(model).values())
    grids = {"weights": config.weight, "inputs": config.input, "token table": config.embedding, "head": config.head}
    lines = [f"- {what}: {describe(grid)}" for what, grid in grids.items() if grid is not None]
    if config.activation is not None:
        lines.append(f"- outputs of ReLU: {describe(config.activation)}")
    if config.attention is not None:
        lines.append(f"- what the products of attention take: {describe(config.attention)}")
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    before = card.base_bytes
    ratio = f" (base model: {before:,} bytes, {before / size:.1f} times as many)" if before else ""
    lines += [f"- weights on disk: {size:,} bytes{ratio}, {bits_per_weight(model):.2f} bits a weight in all", ""]
    table = Table([{"modules": count, "how": how} for how, count in counts.most_common()])
    return "\n".join([*lines, table.to_markdown()])


def provenance(card: Card) -> str:
    base = f"[{card.base.id}](https://huggingface.co/{card.base.id})" if card.base.id else markdown(card.base.name)
    facts = {
        "base model": base,
        "its revision": card.base.revision and code(card.base.revision),
        "its weights' SHA-256": card.base.sha256 and code(card.base.sha256),
        "method": markdown(card.method),
        "inputs of its training or calibration": card.inputs and markdown(card.inputs),
        "words about the model that were used": ", ".join(map(markdown, card.knowledge)),
        "recipe": card.recipe and link(card.recipe),
        "recipe's SHA-256": card.recipe_sha256 and code(card.recipe_sha256),
        "budget": ", ".join(f"{markdown(k)} {markdown(v)}" for k, v in card.budget.items()),
        "seeds": ", ".join(map(str, card.seeds)),
        "versions": ", ".join(f"{markdown(k)} {markdown(v)}" for k, v in card.versions.items()),
    }
    return "\n".join(f"- {name}: {value}" for name, value in facts.items() if value)


def readme(card: Card, repo_id: str, folder: Path, model: nn.Module) -> str:
    """README.md of `model`, which was loaded back from `folder`.

    Raises ValueError if the card tells another grid, and if the licence of the base model is not known.
    """
    if card.config is not None and card.config != plan_of(model).config:
        raise ValueError(
            f"the card is of {card.config}, the model of {plan_of(model).config}: they are not of one run; "
            "make the card from the run that made the model"
        )
    if not card.base.license:
        raise ValueError(
            f"the card of {card.base.name} names no licence, or cannot be read here, and nothing is published without: "
            f"give base=base_of({card.base.id or card.base.name!r}, license=...)"
        )
    pictures = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    terms = card.base.license
    named = terms.get("license_name", terms["license"])
    limits = [*LIMITS, *map(markdown, card.limits)]
    parts = {
        "Load": snippet(repo_id, folder),
        "Evaluation": evaluation(card) if card.scores else "This model has not been evaluated.",
        "Quantization": weights(card, folder, model),
        "Provenance": provenance(card),
        "Pictures": "\n\n".join(f"![{markdown(path)}]({quote(path)})" for path in pictures),
        "Limits": "\n".join(f"- {limit}" for limit in limits),
        "Licence": f"The base model's: {markdown(named)}."
        + (f" {link(terms['license_link'])}" if "license_link" in terms else ""),
    }
    title = f"# {markdown(repo_id.rpartition('/')[2])}\n\n{markdown(card.base.name)}, quantized with zsaq.\n\n"
    body = title + (NO_DATA if card.zero_shot else WITH_DATA)
    body += "".join(f"\n\n## {head}\n\n{text}" for head, text in parts.items() if text)
    return str(ModelCard(f"---\n{metadata(card, repo_id, model).to_yaml()}\n---\n\n{body}\n"))


def eval_files(card: Card) -> dict[str, str]:
    """Path -> text of what goes to .eval_results: the first metric, if it was taken on a task of a Hub data set."""
    scores, data = student_scores(card), card.data
    if not scores or data is None or data.id is None or data.task is None:
        return {}
    score = scores[0]
    spread = "" if score.spread is None else f", standard deviation {score.spread:.6f}"
    split, seeds = plain(data.split) or "split unknown", list(card.seeds)
    notes = f"{plain(score.metric)}, {split}, seeds {seeds}{spread}; quantized by zsaq"
    entry = EvalResultEntry(dataset_id=plain(data.id), task_id=plain(data.task), value=score.mean, notes=notes)
    name = re.sub(r"\W+", "-", f"{data.id}-{data.task}".lower())
    return {f".eval_results/{name}.yaml": yaml_dump(eval_result_entries_to_yaml([entry]))}
