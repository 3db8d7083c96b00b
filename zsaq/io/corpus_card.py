"""The card of a corpus: what wrote it, after which prompts, and how to read it."""

import json
from collections.abc import Mapping
from typing import Any, Final

from huggingface_hub import DatasetCardData

WRITTEN: Final = """, written by a language model for quantizing and calibrating {teacher}. No real text was read
for it.

A language model made this up: it may be wrong, offensive or resemble text that the model was trained on."""
UNKNOWN: Final = ", of unknown origin: nothing tells that they are synthetic."
SHOWN: Final = 40  # prompts; corpus.json has all
BODY: Final = """# Text for {teacher}

{rows} {what}{origin}

| | |
|---|---|
{table}

After these prompts{some}, drawn at random, each text was cut at its closing quotation mark or its last whole sentence:

```text
{prompts}
```

## Reading it

```python
from datasets import load_dataset

texts = load_dataset("FOLDER_OR_ID", split="train")["text"]
```

`fluency` is the mean log probability of a text's tokens for its writer, in nats. `corpus.json` holds the facts and the
sha256 of the texts. zsaq takes it by path or id: `zsaq quantize MODEL --corpus FOLDER_OR_ID ...`.
"""


def card(facts: Mapping[str, Any]) -> str:
    """README.md of a corpus with these facts."""
    known = {"generator", "license", "temperature", "seed", "origin", "rows", "sha256", "zsaq"}
    table = "\n".join(f"| {name} | {line(facts[name])} |" for name in sorted(known & set(facts)))
    asked = facts.get("prompts")
    prompts = [str(prompt) for prompt in asked] if isinstance(asked, list) else []
    teacher = line(facts.get("teacher", "a model"))
    data = DatasetCardData(
        license=facts.get("license"), task_categories=["text-generation"],
        tags=[*(["synthetic"] if written(facts) else []), "zsaq", "calibration"],
        pretty_name=f"Text for {teacher}",
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "train.parquet"}]}],
    )  # fmt: skip
    body = BODY.format(
        teacher=teacher,
        origin=WRITTEN.format(teacher=teacher) if written(facts) else UNKNOWN,
        rows=facts.get("rows", ""),
        what="pairs of texts" if facts.get("pairs") else "texts",
        table=table,
        some=f" (the first {SHOWN} of {len(prompts)})" if len(prompts) > SHOWN else "",
        prompts="\n".join(json.dumps(prompt, ensure_ascii=False)[1:-1] for prompt in prompts[:SHOWN]) or "none",
    )
    return f"---\n{data.to_yaml()}\n---\n\n{body}"


def written(facts: Mapping[str, Any]) -> bool:
    """Whether they say that a generator wrote the texts."""
    return isinstance(facts.get("generator"), str)


def line(value: object) -> str:
    """What can stand in a cell of a table: one line, of what can be shown."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    return text.replace("|", "\\|").replace("`", "'")[:300]
