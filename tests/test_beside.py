"""A tokenizer or processor that lies beside a model is read, or it is said why not; nobody goes on without one."""

import json
from pathlib import Path

import pytest

from language_toys import wordpiece
from teachers import folder_of, objects
from zsaq import quantize
from zsaq.io.readers import processor_of, tokenizer_of

DAMAGED = [b"", b"{", b"[]", b"null", b"7", b"\xff\xfe", b"[" * 100_000, b'{"model": {"vocab": {"a": "x"}}}']


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "bert", *objects("bert"))


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_tokenizer_is_refused_by_name(content: bytes, folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"no tokenizer can be made of tokenizer\.json, .*take the files away"):
        quantize(folder, "w4a8", method="rtn")


@pytest.mark.parametrize("content", DAMAGED[:-1], ids=range(len(DAMAGED) - 1))
def test_a_damaged_processor_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, *objects("resnet"))
    assert processor_of(folder) is not None
    (folder / "preprocessor_config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"no processor can be made of preprocessor_config\.json .*fetch the files"):
        quantize(folder, "w4a4", method="rtn-noise")


def test_a_tokenizer_that_cannot_read_is_refused(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text()
    core = json.loads(text)
    core["post_processor"]["special_tokens"].pop("[SEP]")
    (folder / "tokenizer.json").write_text(json.dumps(core))
    with pytest.raises(ValueError, match="no tokenizer can be made of"):
        tokenizer_of(folder)


def test_one_that_is_given_stands_in_for_it(folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(b"{")
    student = quantize(folder, "w4a8", method="rtn", tokenizer=wordpiece())
    assert len(student.zsaq.parts) == 1


def test_none_is_none(folder: Path, tmp_path: Path) -> None:
    assert tokenizer_of(folder) is not None and processor_of(folder) is None
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert tokenizer_of(folder) is None  # transformers would make one of the model's type, without a vocabulary
    assert tokenizer_of(tmp_path / "nothing") is None
