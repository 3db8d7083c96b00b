"""The command line in this process, and a folder of toys for it."""

import json
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import BitImageProcessorPil
from typer.testing import CliRunner

import zsaq_cli
from language_toys import bert, bpe, opt, wordpiece
from vision_toys import resnet


def run(*args: str | Path) -> Any:
    return CliRunner().invoke(zsaq_cli.app, [str(arg) for arg in args])


def told(*args: str | Path, code: int = 0) -> dict[str, Any]:
    """The JSON object of a run that ends with `code`; stdout holds nothing else."""
    result = run(*args, "--json")
    assert result.exit_code == code, (result.output, result.exception)
    return json.loads(result.stdout)


def toys_in(root: Path) -> Path:
    """A text classifier, its data, a generator, an image classifier, its images, and a student of the first."""
    tokenizer = wordpiece()
    for part in (bert(tokenizer, labels=2), tokenizer):
        part.save_pretrained(root / "bert")
    writer = bpe()
    for part in (opt(writer), writer):
        part.save_pretrained(root / "opt")
    side = {"height": 16, "width": 16}
    for part in (resnet(), BitImageProcessorPil(size={"shortest_edge": 16}, crop_size=side)):
        part.save_pretrained(root / "resnet")
    rows = [{"sentence": "the film is good", "label": 1}, {"sentence": "it is bad", "label": 0}] * 3
    (root / "validation.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name in range(4):
        (root / "images" / str(name)).mkdir(parents=True)
        Image.new("RGB", (20, 20), (60 * name, 9, 9)).save(root / "images" / str(name) / "one.png")
    told("quantize", root / "bert", "--method", "rtn", "--output_dir", root / "student", "--license", "apache-2.0")
    return root
