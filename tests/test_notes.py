"""What a score rests on reaches table and JSON: the order of the classes, what was left out, a score below chance."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import BitImageProcessorPil, ResNetConfig, ResNetForImageClassification

from commands import run, told
from glue_toys import rows, teacher, tokenizer, write
from vision_toys import spread
from zsaq.eval import glue, imagenet, perplexity
from zsaq.eval.decoding import Unreadable
from zsaq.eval.images import ImageSource, open_pictures
from zsaq.eval.remarks import Remarks

CLASSES = 10
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A net of ten classes without names, and its processor."""
    folder = tmp_path_factory.mktemp("model")
    settings: dict[str, Any] = {"num_labels": CLASSES, "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    net = spread(ResNetForImageClassification(ResNetConfig(layer_type="basic", **settings)).eval())
    side = {"height": 16, "width": 16}
    for part in (net, BitImageProcessorPil(size={"shortest_edge": 16}, crop_size=side)):
        part.save_pretrained(folder)
    return folder


@pytest.fixture
def pictures(model: Path, tmp_path: Path) -> Path:
    """Pictures in folders 1 to 10, each in that of the output which the net answers, counted from 1."""
    net = ResNetForImageClassification.from_pretrained(model).eval()
    processor, folder = BitImageProcessorPil.from_pretrained(model), tmp_path / "images"
    rng = torch.Generator().manual_seed(0)
    for name in range(1, CLASSES + 1):
        (folder / str(name)).mkdir(parents=True)
    for number in range(100):
        pixels = torch.randint(0, 256, (2, 2, 3), generator=rng, dtype=torch.uint8)
        image = Image.fromarray(pixels.numpy()).resize((16, 16))
        with torch.no_grad():
            answer = net(**processor(images=[image], return_tensors="pt")).logits.argmax().item()
        image.save(folder / str(int(answer) + 1) / f"{number}.png")
    return folder


def test_folders_from_1_to_10_are_in_the_order_of_their_numbers(model: Path, pictures: Path) -> None:
    assert len({path.parent.name for path in pictures.rglob("*.png")}) > 3
    facts = told("evaluate", model, "--images", pictures)
    assert facts["accuracy"] == 1 and any("counted from 1" in note for note in facts["notes"])
    shown = " ".join(run("evaluate", model, "--images", pictures).stdout.split())
    assert "the order of the classes is assumed" in shown and "10 is output 9" in shown
    report = imagenet.main(["--model", str(model), "--data_dir", str(pictures)])
    assert report["top1"] == 1 and report["notes"] == facts["notes"]


def test_a_score_below_chance_is_told_of_model_and_teacher(model: Path, pictures: Path) -> None:
    for name in range(CLASSES, 0, -1):  # every class is one further on
        (pictures / str(name)).rename(pictures / str(name + 1))
    (pictures / str(CLASSES + 1)).rename(pictures / "1")
    facts = told("evaluate", model, "--images", pictures, "--teacher", model)
    assert facts["accuracy"] == 0 and any("below chance: 0.00 % of 100 samples" in note for note in facts["notes"])
    low = told("evaluate", model, "--images", pictures, "--limit", "5")["notes"]
    assert not any("below chance" in note for note in low), "five pictures tell nothing"


def test_chance_is_that_of_the_models_outputs(model: Path, pictures: Path, tmp_path: Path) -> None:
    """Two of ten classes, 30 of 100 right: few for a guess between two, many for one among the outputs."""
    right = next(pictures.rglob("*.png"))
    output = int(right.parent.name) - 1
    for number in range(100):
        folder = tmp_path / "two" / str(output if number < 30 else (output + 1) % CLASSES)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(right, folder / f"{number}.png")
    report = imagenet.main(["--model", str(model), "--data_dir", str(tmp_path / "two")])
    assert report["top1"] == pytest.approx(0.3) and report["classes"] == CLASSES
    facts = told("evaluate", model, "--images", tmp_path / "two")
    assert not any("below chance" in note for note in [*report["notes"], *facts["notes"]])


def test_what_is_no_class_and_no_picture_is_told(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = told("evaluate", model, "--images", pictures)
    first = next(folder for folder in sorted(pictures.iterdir()) if list(folder.iterdir()))
    (pictures / "README.md").write_text("about")
    (pictures / ".cache").mkdir()
    (first / "list.txt").write_text("about")
    (first / ".hidden.png").write_bytes(b"")
    (first / "broken.png").write_bytes(b"text")
    (first / "gone.png").symlink_to(tmp_path / "nowhere")
    (first / "picture.png.png").mkdir()
    Image.new("RGB", (9, 9)).save(first / "cut.jpg")
    (first / "cut.jpg").write_bytes((first / "cut.jpg").read_bytes()[:-100])
    Image.new("RGB", (9, 9)).save(first / "moving.gif", save_all=True, append_images=[Image.new("RGB", (9, 9), "red")])
    Image.new("RGBA", (9, 9)).save(first / "clear.png")
    facts = told("evaluate", model, "--images", pictures)
    notes = "\n".join(facts["notes"])
    assert f"2 ({first.name}/broken.png, {first.name}/cut.jpg) are no readable pictures and were left out" in notes
    assert f"1 ({first.name}/moving.gif) hold several frames" in notes
    assert f"1 ({first.name}/clear.png) are transparent and were laid on white" in notes
    assert "2 (.cache, README.md) lie beside the class folders" in notes
    assert f"3 ({first.name}/.hidden.png, {first.name}/gone.png, {first.name}/list.txt) in the class folders" in notes
    report = imagenet.main(["--model", str(model), "--data_dir", str(pictures)])
    assert report["samples"] == 102 and set(facts["notes"]) == set(report["notes"])
    assert "left out" in capsys.readouterr().out and full["accuracy"] == 1


@pytest.mark.slow
def test_two_processes_tell_what_one_does(model: Path, pictures: Path) -> None:
    for number, folder in enumerate(sorted(pictures.iterdir())):
        for part in range(number % 3):
            (folder / f"broken{part}.png").write_bytes(b"text")
        Image.new("RGBA", (9, 9)).save(folder / "clear.png")
    given = ["--model", str(model), "--data_dir", str(pictures), "--batch_size", "3"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, str(ROOT / "eval/imagenet.py"), *given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = imagenet.main(given), json.loads(done.stdout.splitlines()[-1])
    assert two["notes"] == one["notes"] and two["samples"] == one["samples"] == 110
    assert two["top1"] == pytest.approx(one["top1"])


def test_nothing_but_broken_pictures_is_an_error(model: Path, tmp_path: Path) -> None:
    for name in range(CLASSES):
        (tmp_path / "x" / str(name)).mkdir(parents=True)
        (tmp_path / "x" / str(name) / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    error = told("evaluate", model, "--images", tmp_path / "x", code=2)["error"]
    assert "none of the pictures can be read; the first: 0/a.png: no readable image" in error
    shutil.rmtree(tmp_path / "x" / "3")
    (tmp_path / "x" / "3").mkdir()
    assert any("are class folders without pictures" in n for n in open_pictures(ImageSource(str(tmp_path / "x"))).notes)


@pytest.mark.parametrize("order", [(2, 0, 1), (1, 2, 0), (0, 1, 2)])
def test_the_first_broken_picture_is_told_whichever_thread_was_first(order: tuple[int, ...]) -> None:
    remarks = Remarks()
    for number in order:
        remarks.unreadable(number, Unreadable(f"{number}.png"))
    assert remarks.why == "0.png"


def test_a_picture_beyond_the_bound_stops_by_name(model: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (300, 300)).save(pictures / "1" / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)
    error = told("evaluate", model, "--images", pictures, code=2)["error"]
    assert "1/huge.png" in error and "pixels" in error


def test_tasks_tell_the_order_that_they_assume(tmp_path: Path) -> None:
    parts = {
        "plain": {},
        "named": {"id2label": {0: "POSITIVE", 1: "NEGATIVE"}, "label2id": {"POSITIVE": 0, "NEGATIVE": 1}},
    }
    for name, config in parts.items():
        for part in (teacher(**config), tokenizer()):
            part.save_pretrained(tmp_path / name)
    write(tmp_path / "validation.jsonl", rows("sst2", 40))
    given = ["--task", "sst2", "--data_dir", str(tmp_path)]
    assumed = "the config does not name its labels: GLUE's order ['negative', 'positive'] is assumed"
    assert assumed in told("evaluate", tmp_path / "plain", *given)["notes"]
    assert assumed in " ".join(run("evaluate", tmp_path / "plain", *given).stdout.split())
    notes = told("evaluate", tmp_path / "named", *given)["notes"]
    assert any("re-ordered" in note for note in notes)
    both = told("evaluate", tmp_path / "plain", *given, "--teacher", tmp_path / "named")
    assert both["agreement"] == 1 and assumed not in both["notes"], "the student is read in its teacher's order"
    compared = told("compare", tmp_path / "plain", "--methods", "rtn", *given, "--output_dir", tmp_path / "c")
    assert any(assumed in note for note in compared["notes"])


def test_rows_that_are_cut_are_told(tmp_path: Path) -> None:
    for part in (teacher(), tokenizer()):
        part.save_pretrained(tmp_path / "m")
    long = [row | {"sentence": f"a very {'very ' * 40}dull film"} for row in rows("sst2", 3)]
    write(tmp_path / "validation.jsonl", rows("sst2", 20) + long)
    given = ["--task", "sst2", "--data_dir", str(tmp_path)]
    assert "3 of 23 rows are longer than 32 tokens, and were cut" in told("evaluate", tmp_path / "m", *given)["notes"]
    for length, cut in ((32, 3), (2, 23)):
        arguments = ["--model", str(tmp_path / "m"), "--teacher", str(tmp_path / "m"), "--max_length", str(length)]
        notes = glue.main([*arguments, *given])["tasks"]["sst2"]["notes"]
        for who in ("model", "teacher"):
            assert f"{who}: {cut} of 23 rows are longer than {length} tokens, and were cut" in notes
    write(tmp_path / "validation.jsonl", rows("sst2", 20))
    assert not any("were cut" in note for note in told("evaluate", tmp_path / "m", *given)["notes"])


def test_tasks_and_texts_below_chance(tmp_path: Path) -> None:
    model = teacher()
    torch.nn.init.zeros_(model.classifier.weight)
    model.classifier.bias.data = torch.tensor([9.0, 0.0])
    for part in (model, tokenizer()):
        part.save_pretrained(tmp_path / "m")
    write(tmp_path / "validation.jsonl", [row | {"label": 1} for row in rows("sst2", 20)])
    given = ["--task", "sst2", "--data_dir", str(tmp_path)]
    assert any("below chance: 0.00 % of 20" in n for n in told("evaluate", tmp_path / "m", *given)["notes"])
    report = glue.main(["--model", str(tmp_path / "m"), *given])
    assert any("model: the score is below chance" in note for note in report["tasks"]["sst2"]["notes"])


def test_a_text_tells_what_is_not_measured(tmp_path: Path) -> None:
    from language_toys import bpe, opt

    words = bpe()
    for part in (opt(words), words):
        part.save_pretrained(tmp_path / "opt")
    (tmp_path / "t.txt").write_text("the film is very good and the story was not bad " * 30)
    count = len(perplexity.tokenize(words, (tmp_path / "t.txt").read_text()))
    given = ["evaluate", tmp_path / "opt", "--text", tmp_path / "t.txt", "--window", "7"]
    tail = f"the last {count % 7} of {count} tokens fill no window of 7 and are not measured"
    assert count % 7 and tail in told(*given)["notes"]
    assert f"measured on the first 2 of {count // 7} windows of 7 tokens" in told(*given, "--limit", "2")["notes"]
    assert perplexity.left_out(14, 7, 2) is None
    report = perplexity.main(["--model", str(tmp_path / "opt"), "--text", str(tmp_path / "t.txt"), "--window", "7"])
    assert tail in report["notes"] and json.dumps(report)
