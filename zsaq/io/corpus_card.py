"""The card of a corpus: what wrote it, after which prompts, how to read it, and how other tools calibrate with it."""

import json
from collections.abc import Mapping
from typing import Any, Final

from huggingface_hub import DatasetCardData

SHOWN: Final = 40  # prompts; corpus.json has all
BODY: Final = """# Synthetic text for {teacher}

{rows} {what}, written by a language model for quantizing and calibrating {teacher}. No real text was read for it.

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

texts = load_dataset("{place}", split="train")["text"]
```

`fluency` is the mean log probability of a text's tokens for its writer, in nats. `corpus.json` holds the facts and the
sha256 of the texts. zsaq takes it by path or id: `zsaq quantize MODEL --corpus {place} ...`.

A language model made this up: it may be wrong, offensive or resemble text that the model was trained on.
"""


def card(facts: Mapping[str, Any]) -> str:
    """README.md of a corpus with these facts."""
    known = {"generator", "license", "temperature", "seed", "origin", "language", "rows", "sha256", "zsaq"}
    table = "\n".join(f"| {name} | {line(facts[name])} |" for name in sorted(known & set(facts)))
    prompts = [str(prompt) for prompt in facts.get("prompts", ())]
    data = DatasetCardData(
        license=facts.get("license"), task_categories=["text-generation"], tags=["synthetic", "zsaq", "calibration"],
        pretty_name=f"Synthetic text for {line(facts.get('teacher', 'a model'))}",
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "train.parquet"}]}],
    )  # fmt: skip
    body = BODY.format(
        teacher=line(facts.get("teacher", "a model")),
        rows=facts.get("rows", ""),
        what="pairs of texts" if facts.get("pairs") else "texts",
        table=table,
        some=f" (the first {SHOWN} of {len(prompts)})" if len(prompts) > SHOWN else "",
        prompts="\n".join(json.dumps(prompt, ensure_ascii=False)[1:-1] for prompt in prompts[:SHOWN]) or "none",
        place=line(facts.get("name", "FOLDER_OR_ID")),
    )
    return f"---\n{data.to_yaml()}\n---\n\n{body}"


def line(value: object) -> str:
    """What can stand in a cell of a table: one line, of what can be shown."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    return text.replace("|", "\\|").replace("`", "'")[:300]
