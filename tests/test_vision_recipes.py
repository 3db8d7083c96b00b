"""The vision recipes: every method of the tables on a toy, the tables, a teacher with its processor, end to end."""

import csv
import inspect
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset, Features, Value
from datasets import Image as Column
from PIL import Image
from transformers import AutoImageProcessor, ViTImageProcessorPil

sys.path.insert(0, str(Path(__file__).parent.parent / "recipes"))

import vision_quantize
from tables import table
from vision_compare import config_of
from vision_job import VisionJob, normalisation, pretrained, split
from vision_methods import METHODS, VisionBudget

from vision_toys import images, resnet, vit
from zsaq import Loop, coverage, load
from zsaq.eval.imagenet import processor_of, score
from zsaq.eval.images import Source
from zsaq.quant.ranges import static_ranges
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.papers.intraq import intraq_images
from zsaq.vision.published import TABLE, published

ROOT = Path(__file__).parent.parent
BUDGET = VisionBudget(images=4, image_steps=2, warmup=2, steps=2, unit_steps=2, batch=4)
TINY = [f"--{name}={value}" for name, value in vars(BUDGET).items() if name in vision_quantize.BUDGET]
FAST = {"rtn-noise", "rtn-oracle", "zeroq", "dsg", "psaq", "intraq", "plf", "hast", "synq", "genie-noise"}


def toy(kind: str) -> VisionJob:
    """A job of 8 images that the teacher itself has labelled."""
    teacher, size = (vit(), 16) if kind == "vit" else (resnet(), 32)
    pixels = images(8, size, seed=5)
    with torch.no_grad():
        labels = teacher(pixel_values=pixels).logits.argmax(-1)
    return VisionJob(kind, teacher, ImageSpec(4, size), split(pixels, labels, 3), lambda: images(6, size, seed=6))


@pytest.mark.parametrize("method", [pytest.param(m, marks=() if m in FAST else pytest.mark.slow) for m in METHODS])
def test_every_method_makes_a_student_and_leaves_its_teacher_alone(method: str) -> None:
    kind = "vit" if "psaq" in method else "resnet"
    job, untouched = toy(kind), toy(kind).teacher
    config = config_of("psaq" if kind == "vit" else "uniform", "w4a4", job)
    student = METHODS[method](job, config, BUDGET, 0, Loop(Accelerator(cpu=True)))
    told = coverage(student)
    assert told and not any("left alone" in how for name, how in told.items() if "classifier" in name)
    assert all(torch.equal(value, untouched.state_dict()[name]) for name, value in job.teacher.state_dict().items())
    numbers = job.measure(student)
    assert numbers["score"] == numbers["agreement"] and numbers["kl"] > 1e-6


def test_a_teacher_agrees_with_itself_and_a_job_without_images_tells_nothing() -> None:
    job = toy("resnet")
    assert job.measure(job.teacher) == {"score": 1.0, "agreement": 1.0, "kl": 0.0}
    job.test = None
    assert job.measure(job.teacher) == {}


def test_the_oracle_without_real_images_is_an_error() -> None:
    job = toy("resnet")
    job.real = None
    with pytest.raises(ValueError, match="resnet has no real images for the oracle"):
        METHODS["rtn-oracle"](job, config_of("uniform", "w4a4", job), BUDGET, 0, Loop(Accelerator(cpu=True)))


def test_each_row_of_synq_takes_its_ranges_and_shows_what_its_filter_does(tmp_path: Path) -> None:
    job = toy("resnet")
    config, budget = config_of("uniform", "w4a4", job), replace(BUDGET, pictures=tmp_path)
    hi = {}
    for method in ("zeroq", "synq", "synq-no-filter", "synq-zeroq-ranges"):
        student = METHODS[method](job, config, budget, 0, Loop(Accelerator(cpu=True)))
        hi[method] = [float(m.scale) for m in static_ranges(student)]
    assert set(job.made) == {("zeroq", 0), ("hast", 0)}
    assert hi["synq-zeroq-ranges"] == hi["synq-no-filter"] == hi["zeroq"] != hi["synq"]
    assert {"filter.png", "filter-spectrum.png"} <= {path.name for path in (tmp_path / "hast-0").iterdir()}


@pytest.mark.parametrize("method", TABLE)
def test_published_settings_are_arguments(method: Any) -> None:
    arguments = inspect.signature(method).parameters
    small, large = published(method, ImageSpec(10, 64)), published(method, ImageSpec(1000, 65))
    assert {*small, *large} <= set(arguments) and small != large
    told = {name: arguments[name].default for name in large if name not in ("mix", "from_teacher")}
    if method is not intraq_images:  # whose defaults are CIFAR-10's
        assert told == {name: value for name, value in large.items() if name in told}


def test_tables_hold_mean_and_spread_in_order_of_appearance(tmp_path: Path) -> None:
    runs = [
        {"bits": "w4a4", "method": "synq", "seed": 0, "score": 0.5, "agreement": 0.75, "kl": 0.25, "seconds": 3.0},
        {"bits": "w4a4", "method": "rtn-noise", "seed": 0, "score": 0.125, "agreement": 0.5, "kl": 1.0, "seconds": 1},
        {"bits": "w3a3", "method": "synq", "seed": 0, "score": 0.25},
        {"bits": "w4a4", "method": "synq", "seed": 1, "score": 0.7, "agreement": 0.75, "kl": 0.75, "seconds": 5.0},
    ]
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(run) + "\n" for run in runs))
    table(tmp_path)
    assert (tmp_path / "table.md").read_text().splitlines() == [
        "| bits | method | seeds | score | agreement | kl | seconds |",
        "|---|---|---|---|---|---|---|",
        "| w4a4 | synq | 2 | 0.6000 ± 0.1414 | 0.7500 ± 0.0000 | 0.5000 ± 0.3536 | 4.0000 ± 1.4142 |",
        "| w4a4 | rtn-noise | 1 | 0.1250 | 0.5000 | 1.0000 | 1.0000 |",
        "| w3a3 | synq | 1 | 0.2500 |  |  |  |",
    ]
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["score"] for row in rows] == ["0.6000 ± 0.1414", "0.1250", "0.2500"]
    assert [(row["method"], row["seeds"], row["kl"]) for row in rows][2] == ("synq", "1", "")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """resnet/ (its configuration names no size) and vit/ with their processors, val.parquet with 7 labelled images."""
    path = tmp_path_factory.mktemp("saved")
    for name, teacher, size in (("resnet", resnet(), 32), ("vit", vit(), 16)):
        teacher.save_pretrained(path / name)
        sides = {"height": size, "width": size}
        processor = ViTImageProcessorPil(size=sides, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.2, 0.1])
        processor.save_pretrained(path / name)
    rng = torch.Generator().manual_seed(0)
    for i in range(7):
        pixels = torch.randint(0, 256, (20, 24, 3), generator=rng, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(path / f"{i}.png")
    pictures = [{"bytes": (path / f"{i}.png").read_bytes(), "path": None} for i in range(7)]
    features = Features({"image": Column(), "label": Value("int64")})
    Dataset.from_dict({"image": pictures, "label": [0, 1, 2, 3, 0, 1, 2]}, features).to_parquet(path / "val.parquet")
    return path


def test_a_processor_gives_the_frame_the_normalisation_and_the_images(saved: Path) -> None:
    processor = processor_of([str(saved / "resnet")], None, None, (), ())
    data = Source(str(saved / "val.parquet"))
    job = pretrained(str(saved / "resnet"), processor, Accelerator(cpu=True), data, data, batch_size=3)
    assert job.spec == ImageSpec(4, 32) and (job.mean, job.deviation) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    opened = [Image.open(saved / f"{i}.png").convert("RGB") for i in range(7)]
    pixels = processor(images=opened, return_tensors="pt")["pixel_values"]
    assert job.real is not None and torch.equal(job.real(), pixels)
    labels = torch.tensor([0, 1, 2, 3, 0, 1, 2])
    assert job.measure(job.teacher)["score"] == score(resnet(), split(pixels, labels)())["top1"]
    assert normalisation(ViTImageProcessorPil(do_normalize=False), 2) == ((0.0, 0.0), (1.0, 1.0))
    given = processor_of([], 24, None, (0.5,) * 3, (0.5,) * 3)
    assert pretrained(str(saved / "resnet"), given, Accelerator(cpu=True)).spec == ImageSpec(4, 24)


def test_the_recipe_leaves_a_folder_that_loads(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher, data, out = (str(path) for path in (saved / "resnet", saved / "val.parquet", tmp_path / "out"))
    flags = ["--method", "hast", "--preset", "uniform", "--bits", "w4a4", "--data_dir", data]
    vision_quantize.main(["--teacher", teacher, *flags, *TINY, "--output_dir", out])
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert [row["name"] for row in results["rows"]] == ["teacher", "rtn-noise", "hast"]
    first, *students = results["rows"]
    assert first["agreement"] == 1 and all(row["bytes"] < first["bytes"] / 2 for row in students)
    assert results["preset"] == "uniform" and results["config"]["weight"]["bits"] == 4 and results["seed"] == 0
    made = [str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png")]
    assert {"curves.png", "pictures/hast-0/images.png", "pictures/hast-0/spectrum.png"} <= set(made)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out", backend="pil")
    pixels = processor(images=[Image.open(saved / f"{i}.png") for i in range(7)], return_tensors="pt")["pixel_values"]
    again = score(load(tmp_path / "out"), split(pixels, torch.tensor([0, 1, 2, 3, 0, 1, 2]))(), resnet())
    assert again["agreement"] == students[1]["agreement"] and again["kl"] == pytest.approx(students[1]["kl"], rel=1e-5)
    assert "hast" in capsys.readouterr().out


def test_the_recipe_without_images_scores_nothing(saved: Path, tmp_path: Path) -> None:
    flags = ["--teacher", str(saved / "vit"), "--method", "psaq", "--preset", "psaq", "--bits", "w8a8"]
    vision_quantize.main([*flags, *TINY, "--output_dir", str(tmp_path)])
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [set(row) for row in rows] == [{"name", "bytes", "seconds"}] * 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method", "synq", "--preset", "psaq"], "ViTForImageClassification has no BatchNorm"),
        (["--method", "psaq", "--preset", "uniform"], "ViTForImageClassification has no module nn.ReLU"),
        (["--bits", "w4"], "'w4' is no text of a preset"),
    ],
)
def test_what_does_not_suit_is_told(saved: Path, tmp_path: Path, flags: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vision_quantize.main(["--teacher", str(saved / "vit"), *flags, *TINY, "--output_dir", str(tmp_path)])
    with pytest.raises(ValueError, match="digits-vit brings its own images"):
        vision_quantize.main(["--teacher", "digits-vit", "--data_dir", "images"])


@pytest.mark.slow
def test_an_error_is_one_line(saved: Path, tmp_path: Path) -> None:
    flags = ["--teacher", str(saved / "vit"), "--preset", "psaq", *TINY, "--output_dir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "recipes/vision_quantize.py", *flags], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("vision_quantize.py: ViTForImageClassification has no BatchNorm")


@pytest.mark.slow
def test_the_embedded_default_end_to_end(tmp_path: Path) -> None:
    launch = ["-m", "accelerate.commands.launch", "--cpu", "recipes/vision_quantize.py"]
    command = [sys.executable, *launch, *TINY, "--output_dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["teacher", "rtn-noise", "genie"] and rows[0]["score"] > 0.95
