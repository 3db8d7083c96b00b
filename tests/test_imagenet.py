"""Scoring classifiers of images: reading, labels, numbers by hand, the command line."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PretrainedConfig, ViTImageProcessorPil

import vision_toys as toys
from zsaq import QuantConfig, quantize_model
from zsaq.eval import imagenet
from zsaq.eval.imagenet import batches, grade, score
from zsaq.eval.images import ImageSource, Picture, class_order, open_pictures

ROOT = Path(__file__).parent.parent


def picture(seed: int, mode: str = "RGB", size: tuple[int, int] = (20, 24)) -> Image.Image:
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (3, 4, 4), generator=rng, dtype=torch.uint8)
    return Image.fromarray(coarse.permute(1, 2, 0).contiguous().numpy()).resize(size).convert(mode)


def encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def parquet(path: Path, labels: list[Any], names: list[str] | None = None) -> str:
    kind = datasets.ClassLabel(names=names) if names else datasets.Value("int64")
    rows = {"image": [{"bytes": encoded(picture(i)), "path": None} for i in range(len(labels))], "label": labels}
    features = datasets.Features({"image": datasets.Image(), "label": kind})
    datasets.Dataset.from_dict(rows, features).to_parquet(path)
    return str(path)


def folder(path: Path, labels: list[int], names: list[str]) -> str:
    for name in names:
        (path / name).mkdir(parents=True)
    for i, label in enumerate(labels):
        picture(i).save(path / names[label] / f"{i:03}.png")
    return str(path)


def config(names: list[str]) -> PretrainedConfig:
    return PretrainedConfig(id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)})


LABELS = [0, 3, 2, 1, 1, 2, 3, 0, 0, 2]


def test_parquet_and_folders_give_the_same_images(tmp_path: Path) -> None:
    rows = list(open_pictures(ImageSource(parquet(tmp_path / "val.parquet", LABELS))))
    assert [row.label for row in rows] == LABELS
    pixels = [row.image().tobytes() for row in rows]
    assert pixels == [picture(i).tobytes() for i in range(len(LABELS))]
    opened = open_pictures(ImageSource(folder(tmp_path / "images" / "val", LABELS, list("abcd"))))
    assert opened.names == tuple("abcd")
    assert sorted((row.label, row.image().tobytes()) for row in opened) == sorted(zip(LABELS, pixels, strict=True))
    assert list(opened) == list(opened), "it can be read twice"


def test_splits_and_columns_are_found_by_name(tmp_path: Path) -> None:
    parquet(tmp_path / "train-00000-of-00001.parquet", [1])
    parquet(tmp_path / "validation-00000-of-00001.parquet", [2, 3])
    assert [row.label for row in open_pictures(ImageSource(str(tmp_path), "validation"))] == [2, 3]
    folder(tmp_path / "images" / "val", [0, 1], ["x", "y"])
    assert len(list(open_pictures(ImageSource(str(tmp_path / "images"), "val")))) == 2
    with pytest.raises(ValueError, match=r"holds \['train', 'validation'\]: name one"):
        open_pictures(ImageSource(str(tmp_path)))
    with pytest.raises(ValueError, match=r"lacks \['fine'\]: name them"):
        open_pictures(ImageSource(str(tmp_path), "train", ("image", "fine")))


def test_what_holds_no_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        open_pictures(ImageSource(str(tmp_path / "nothing")))
    with pytest.raises(ValueError, match="neither a folder for each class nor parquet"):
        open_pictures(ImageSource(str(tmp_path)))
    (tmp_path / "cat").mkdir()
    with pytest.raises(ValueError, match="hold no images"):
        open_pictures(ImageSource(str(tmp_path)))
    with pytest.raises(ValueError, match="no readable image"):
        Picture(b"text", 0).image()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    row = {"image": [{"bytes": encoded(picture(0)), "path": None}], "label": ["cat"]}
    datasets.Dataset.from_dict(row, features).to_parquet(tmp_path / "text.parquet")
    with pytest.raises(ValueError, match="row 0 has label 'cat'"):
        list(open_pictures(ImageSource(str(tmp_path / "text.parquet"))))


def test_names_of_labels_find_their_outputs() -> None:
    animals = config(["Tabby cat", "dog", "horse"])
    assert class_order(None, animals) == ([0, 1, 2], None)
    assert class_order(("horse", "tabby_cat"), animals) == ([2, 0], None)
    assert class_order(("0", "10", "2"), config([f"LABEL_{i}" for i in range(11)])) == ([0, 10, 2], None)
    assert class_order(("crane", "crane"), config(["crane", "crane"])) == ([0, 1], None), "ImageNet has two cranes"
    order, note = class_order(("a", "b"), config(["LABEL_0", "LABEL_1"]))
    assert order == [0, 1] and note and "names no classes" in note
    order, note = class_order(("n01440764", "n01443537", "n01484850"), animals)
    assert order == [0, 1, 2] and note and "WordNet" in note
    for names in (("dog", "cow"), ("n01440764", "n01443537"), ("0", "7")):
        with pytest.raises(ValueError, match="not among its names"):
            class_order(names, animals)


def test_top_k_agreement_and_kl_by_hand() -> None:
    logits = torch.arange(7.0).repeat(3, 1)
    teacher = torch.stack([torch.arange(7.0), torch.arange(7.0).flip(0), torch.zeros(7)])
    rows = grade(logits, torch.tensor([6, 2, 1]), teacher)
    assert rows["top1"].tolist() == [1, 0, 0] and rows["top5"].tolist() == [1, 1, 0]
    assert rows["teacher_top1"].tolist() == [1, 0, 0] and rows["agreement"].tolist()[:2] == [1, 0]
    p = teacher.double().softmax(1)
    by_hand = (p * (p.log() - logits.double().log_softmax(1))).sum(1)
    assert torch.allclose(rows["kl"], by_hand, atol=1e-12) and rows["kl"][0] == 0
    assert set(grade(logits[:, :5], torch.tensor([0, 0, 0]))) == {"top1"}, "five of five are no measure"


def test_broken_answers_and_foreign_labels_are_refused() -> None:
    logits, labels = torch.zeros(2, 3), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="a label is 3, the model answers 3 classes"):
        grade(logits, torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="the model answers nan"):
        grade(logits / 0, labels)
    with pytest.raises(ValueError, match="the teacher answers nan"):
        grade(logits, labels, logits * float("nan"))
    with pytest.raises(ValueError, match="the teacher answers 4 classes, the model 3"):
        grade(logits, labels, torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"got \[0\] samples"):
        score(nn.Linear(2, 2), [])


class Brightness(nn.Module):
    """Two classes: darker or brighter than zero. A Tensor as an answer, as plain modules give."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, pixel_values: Tensor) -> Tensor:
        mean = self.scale * pixel_values.mean((1, 2, 3))
        return torch.stack([-mean, mean], 1)


def test_a_score_is_the_mean_over_samples_whatever_the_batches() -> None:
    model = Brightness().train()
    images = torch.tensor([-1.0, 1.0, 2.0, -3.0, 1.0])[:, None, None, None].expand(-1, 3, 2, 2)
    labels = torch.tensor([0, 1, 0, 0, 1])
    for size in (1, 2, 5):
        split = zip(images.split(size), labels.split(size), strict=True)
        result = score(model, ({"pixel_values": x, "labels": y} for x, y in split), Brightness())
        assert result == {"top1": 0.8, "teacher_top1": 0.8, "agreement": 1.0, "kl": 0.0, "samples": 5}
    assert model.training


@pytest.mark.parametrize(("of", "threads"), [(1, 1), (3, 1), (2, 4)])
def test_shares_hold_every_picture_once_in_order(tmp_path: Path, of: int, threads: int) -> None:
    pictures, rows = open_pictures(ImageSource(parquet(tmp_path / "p.parquet", LABELS))), []
    whole = torch.stack([torch.tensor(picture(i).getpixel((9, 9))) for i in range(len(LABELS))])
    for place in range(of):
        stream = batches(pictures, lambda x: torch.tensor(x.getpixel((9, 9))), [3, 2, 1, 0], 2, (place, of), threads)
        for batch in stream:
            assert torch.equal(batch["pixel_values"], whole[batch["index"]]) and len(batch["labels"]) <= 2
            rows += zip(batch["index"].tolist(), batch["labels"].tolist(), strict=True)
    assert sorted(rows) == [(i, 3 - label) for i, label in enumerate(LABELS)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    teacher = toys.vit()
    teacher.save_pretrained(path / "teacher")
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(path / "teacher")
    quantize_model(teacher, QuantConfig.parse("w3a16")).save_pretrained(path / "student")
    parquet(path / "val.parquet", LABELS)
    folder(path / "images", LABELS, [f"class {i}" for i in range(4)])
    return path


def flags(saved: Path, data: str) -> list[str]:
    model, teacher = str(saved / "student"), str(saved / "teacher")
    return ["--model", model, "--teacher", teacher, "--data_dir", str(saved / data), "--batch_size", "4"]


def test_the_command_line_prints_json_last(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = imagenet.main([*flags(saved, "val.parquet"), "--output", str(saved / "report.json")])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == report
    assert json.loads((saved / "report.json").read_text()) == report
    assert report["samples"] == 10 and report["classes"] == 4 and "top5" not in report and report["notes"] == []
    assert report["processor"]["backend"] == "pil" and report["processor"]["class"] == "ViTImageProcessorPil"
    assert report["kl"] > 0 and 0 < report["agreement"] <= 1
    teacher, processor = toys.vit(), ViTImageProcessorPil(size={"height": 16, "width": 16})
    pixels = processor(images=[picture(i) for i in range(10)], return_tensors="pt")["pixel_values"]
    right = teacher(pixel_values=pixels).logits.argmax(1) == torch.tensor(LABELS)
    assert report["teacher_top1"] == pytest.approx(float(right.float().mean()))


def test_a_folder_gives_the_same_numbers(saved: Path) -> None:
    one = imagenet.main(flags(saved, "val.parquet"))
    other = imagenet.main([*flags(saved, "images"), "--threads", "1"])
    for name in ("top1", "teacher_top1", "agreement", "kl"):
        assert one[name] == pytest.approx(other[name], rel=1e-6)


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(saved: Path) -> None:
    one = imagenet.main(flags(saved, "val.parquet"))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *launch, str(ROOT / "eval/imagenet.py"), *flags(saved, "val.parquet")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    two = json.loads(done.stdout.splitlines()[-1])
    assert two["samples"] == one["samples"]
    for name in ("top1", "teacher_top1", "agreement", "kl"):
        assert one[name] == pytest.approx(two[name], rel=1e-6)
