"""What a student is scored by: the numbers of the evaluation scripts, under the names of tables."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import BitImageProcessorPil

import zsaq
from language_toys import bert, bpe, opt, wordpiece
from vision_toys import images, resnet
from zsaq.eval import imagenet, perplexity, scorers, scoring
from zsaq.eval.images import ImageSource
from zsaq.eval.tasks import find_task

ROWS = [{"sentence": "the film is good", "label": 1}, {"sentence": "it is bad", "label": 0}] * 3


def test_a_task_beside_its_teacher_and_alone() -> None:
    tokenizer, teacher = wordpiece(), bert(wordpiece(), labels=2)
    student = zsaq.quantize_model(teacher, "w2a8")
    numbers = scorers.glue("sst2", teacher, tokenizer, rows=ROWS)(student)
    answers = scoring.predict(teacher, tokenizer, find_task("sst2"), ROWS, max_length=32)
    plain = scoring.score(student, tokenizer, find_task("sst2"), ROWS, answers, max_length=32)
    assert list(numbers) == ["accuracy", "agreement", "kl"]
    assert all(numbers[name] == plain[name] for name in numbers)
    assert list(scorers.glue("sst2", None, tokenizer, rows=ROWS)(student)) == ["accuracy"]
    same = scorers.glue("sst2", teacher, tokenizer, rows=ROWS)(teacher)
    assert same["agreement"] == 1 and same["kl"] == pytest.approx(0, abs=1e-6)
    assert next(iter(scorers.glue("mrpc", None, tokenizer, rows=[
        {"sentence1": "the film", "sentence2": "a film", "label": n % 2} for n in range(4)
    ])(student))) in ("accuracy", "f1", "score")  # fmt: skip


def test_a_text_by_its_perplexity(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("the film is very good and the story was not bad " * 30)
    tokenizer, teacher = bpe(), opt(bpe())
    student = zsaq.quantize_model(teacher, "w4a8")
    numbers = scorers.text(tmp_path / "t.txt", teacher, tokenizer, window=16, max_windows=3)(student)
    ids = perplexity.tokenize(tokenizer, (tmp_path / "t.txt").read_text(), None)
    plain = perplexity.perplexity(student, ids, 16, teacher=teacher, max_windows=3)
    assert numbers == {name: plain[name] for name in ("perplexity", "agreement", "kl")}
    assert list(scorers.text(tmp_path / "t.txt", None, tokenizer, window=16)(student)) == ["perplexity"]
    with pytest.raises(ValueError, match="is no file: give a UTF-8 text file"):
        scorers.text(tmp_path / "none.txt", None, tokenizer)


def test_images_as_often_as_asked() -> None:
    teacher = resnet()
    batch = {"pixel_values": images(6), "labels": torch.tensor([0, 1, 2, 3, 0, 1])}
    score = scorers.images(lambda: [batch], teacher)
    plain = imagenet.score(teacher, [batch], teacher)
    for _ in range(2):
        numbers = score(teacher)
        assert list(numbers) == ["accuracy", "agreement", "kl"] and numbers["accuracy"] == plain["top1"]


def test_pictures_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in range(4):
        (tmp_path / str(name)).mkdir()
        Image.new("RGB", (20, 20), (60 * name, 9, 9)).save(tmp_path / str(name) / "one.png")
    processor = BitImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    teacher = resnet()
    score = scorers.pictures(ImageSource(str(tmp_path), None), teacher.config, processor, teacher, batch_size=2)
    assert score(teacher)["agreement"] == 1 and score(teacher) == score(teacher)
    assert capsys.readouterr().out == ""
