"""Whoever reads a saved student beside `zsaq.load`: evaluation, tokenizers and processors, the runtime of an export."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertTokenizerFast  # pyright: ignore[reportAttributeAccessIssue]

from exported import copied, exported
from students import CONFIGS, TEACHERS, one_thread, student_of
from zsaq.deploy.onnx.session import OnnxModel
from zsaq.eval.pretrained import load_with_tokenizer
from zsaq.io.added import EXPORT
from zsaq.io.checksums import MANIFEST
from zsaq.io.loading import load
from zsaq.io.readers import processor_of, tokenizer_of
from zsaq.io.saving import save
from zsaq.language.job import TextJob
from zsaq.quant.tokens import check_tokens

__all__ = ["copied", "exported", "one_thread"]


def words(count: int, folder: Path) -> BertTokenizerFast:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "vocab.txt").write_text("\n".join([*special, *(f"w{n}" for n in range(count - len(special)))]))
    return BertTokenizerFast(str(folder / "vocab.txt"))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save(student_of("bert", CONFIGS["w2a8"]), tmp_path / "student", words(200, tmp_path))


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    facts = json.loads((folder / "onnx" / EXPORT).read_text())
    change(facts)
    (folder / "onnx" / EXPORT).write_text(json.dumps(facts))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def linked(folder: Path) -> None:
    data = folder / "onnx" / "model.onnx.data"
    data.rename(folder.parent / "elsewhere.data")
    data.symlink_to(folder.parent / "elsewhere.data")


EXPORTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "weights that changed": (lambda f: flip(f / "onnx/model.onnx.data"), r"model\.onnx\.data has the sha256"),
    "a graph that changed": (lambda f: flip(f / "onnx/model.onnx"), r"model\.onnx has the sha256"),
    "weights that lack": (lambda f: (f / "onnx/model.onnx.data").unlink(), r"model\.onnx\.data is missing"),
    "a link that leads out": (linked, "is a link that leads out of the folder"),
    "a file of nobody": (lambda f: (f / "onnx/more.data").write_bytes(b"1"), r"more\.data is foreign"),
    "no hashes": (lambda f: edit(f, lambda facts: facts.pop("files")), "does not tell what the export consists of"),
    "a name that leads out": (
        lambda f: edit(f, lambda facts: facts["files"].update({"../x": {"sha256": "0" * 64, "size": 1}})),
        "no plain relative path",
    ),
    "a student that changed": (lambda f: flip(f / "model.safetensors"), "belongs to another model"),
    "a student with a foreign file": (lambda f: (f / "vocab.txt").write_text("a"), r"vocab\.txt is foreign"),
    "a student without its config": (lambda f: (f / "config.json").unlink(), r"config\.json is missing"),
}


@pytest.mark.parametrize("what", EXPORTS)
def test_the_runtime_of_an_export_verifies_it_and_the_student_around(what: str, copied: Path) -> None:
    spoil, message = EXPORTS[what]
    OnnxModel(copied)
    spoil(copied)
    with pytest.raises(ValueError, match=message):
        OnnxModel(copied)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tokenizer_config.json", '{"a":' * 10_000, "nested deeper"),
        ("tokenizer_config.json", "[]", "holds no JSON object"),
        ("tokenizer_config.json", '{"vocab": "/etc/passwd"}', "its vocab names another file"),
        ("tokenizer_config.json", '{"vocab_file": "../other.txt"}', "its vocab_file names another file"),
        ("preprocessor_config.json", '{"size": NaN}', "its size is nan"),
        ("generation_config.json", '{"a":' * 10_000, "nested deeper"),
        ("special_tokens_map.json", "7", "holds no JSON object"),
    ],
)
def test_what_lies_beside_a_student_is_looked_at(name: str, text: str, message: str, saved: Path) -> None:
    (saved / MANIFEST).unlink()
    (saved / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        load(saved)


@pytest.mark.parametrize("text", ['{"a":' * 100_000, "[]", '{"eos_token": 5}'])
def test_a_damaged_tokenizer_or_processor_is_told(text: str, tmp_path: Path) -> None:
    words(30, tmp_path).save_pretrained(tmp_path / "m")
    TEACHERS["bert"]().save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "tokenizer_config.json").write_text(text)
    for read in (tokenizer_of, lambda folder: load_with_tokenizer(str(folder), AutoModelForSequenceClassification)):
        with pytest.raises(ValueError, match=r"no tokenizer can be made of"):
            read(tmp_path / "m")
    if not text.startswith('{"eos'):
        (tmp_path / "m" / "preprocessor_config.json").write_text(text)
        with pytest.raises(ValueError, match=r"no processor can be made of"):
            processor_of(tmp_path / "m")


@pytest.mark.parametrize("token", ["eos_token", "pad_token", "bos_token", "mask_token"])
def test_a_special_token_beyond_the_vocabulary_is_named(token: str, tmp_path: Path) -> None:
    teacher = TEACHERS["bert"]()
    tokenizer: Any = words(200, tmp_path)
    check_tokens(teacher, tokenizer)
    tokenizer.add_special_tokens({token: "<beyond>"})
    message = rf"counts beyond the 200 tokens of BertForSequenceClassification \({token} '<beyond>' is 200\): give"
    with pytest.raises(ValueError, match=message):
        check_tokens(teacher, tokenizer)
    with pytest.raises(ValueError, match=message):
        _ = TextJob.of(teacher, tokenizer).words
    teacher.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    with pytest.raises(ValueError, match=message):
        load_with_tokenizer(str(tmp_path / "m"), AutoModelForSequenceClassification)


def test_evaluation_reads_a_student_and_its_tokenizer_as_they_were_saved(saved: Path, tmp_path: Path) -> None:
    model, tokenizer = load_with_tokenizer(str(saved), AutoModelForSequenceClassification)
    assert len(tokenizer) == 200 and torch.equal(model.classifier.weight, load(saved).classifier.weight)  # type: ignore[union-attr]
    other = Path(shutil.copytree(saved, tmp_path / "other"))
    flip(other / "tokenizer.json")
    with pytest.raises(ValueError, match=r"tokenizer\.json has the sha256"):
        load_with_tokenizer(str(other), AutoModelForSequenceClassification)
