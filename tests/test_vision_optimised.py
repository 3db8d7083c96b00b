"""Images that are made once, in batches: they repeat, please their objective, and are cut into parts."""

from pathlib import Path
from typing import Any

import pytest
import torch

from vision_toys import CLASSES, cnn, images, logits, vit
from zsaq import Pair
from zsaq.train.pair import Batch
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.losses.priors import BatchNormStats, TeacherCE
from zsaq.vision.models import classifier
from zsaq.vision.papers.hast import hast_images
from zsaq.vision.papers.intraq import intraq_images
from zsaq.vision.papers.plf import plf_images
from zsaq.vision.papers.synq import synq_images
from zsaq.vision.sources.crops import minibatches
from zsaq.vision.sources.optimised import optimised_images

SPEC = ImageSpec(CLASSES, 16)
BATCH: Batch = {"pixel_values": images(8), "labels": torch.arange(8) % CLASSES}
FEW: dict[str, Any] = {"images": 6, "batch_size": 4, "steps": 3}
MAKERS = {
    "hast": hast_images, "intraq": intraq_images, "plf": plf_images,
    "synq": lambda *args, **options: synq_images(*args, **options, centre_steps=2),
}  # fmt: skip


@pytest.mark.parametrize("name", MAKERS)
def test_images_are_made_in_batches_and_repeat(name: str) -> None:
    teacher = cnn()
    before = logits(classifier(teacher))
    batch, again = (MAKERS[name](teacher, SPEC, **FEW) for _ in range(2))
    assert batch["pixel_values"].shape == (6, 3, 16, 16) and batch["labels"].shape == (6,)
    assert batch["labels"].dtype == torch.int64 and not batch["pixel_values"].requires_grad
    assert all(torch.equal(batch[key], again[key]) for key in batch)
    assert not torch.equal(batch["pixel_values"], MAKERS[name](teacher, SPEC, **FEW, seed=7)["pixel_values"])
    assert torch.equal(logits(classifier(teacher)), before)


def test_optimised_images_please_their_objective(tmp_path: Path) -> None:
    teacher = classifier(cnn())
    objective = BatchNormStats(teacher) + TeacherCE()
    batches = []
    batch = optimised_images(
        teacher, objective, SPEC, images=8, batch_size=8, steps=25, lr=0.1, crops=0.5, finished=batches.append,
        folder=tmp_path,
    )  # fmt: skip
    noise = {**batch, "pixel_values": torch.randn(8, 3, 16, 16)}
    after, start = (objective(Pair(teacher, teacher, b, objective.captures)).item() for b in (batch, noise))
    assert after < 0.5 * start
    assert len(batches) == 1 and torch.equal(batches[0]["pixel_values"], batch["pixel_values"])
    assert {p.name for p in tmp_path.iterdir()} == {"images.png", "spectrum.png", "losses.png"}


def test_a_rate_falls_after_the_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images held where they are by a rate too small to move them never please better."""
    rates: list[float] = []
    step = torch.optim.Adam.step

    def recorded(self: torch.optim.Adam, *rest: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *rest)

    monkeypatch.setattr(torch.optim.Adam, "step", recorded)
    teacher = classifier(cnn())
    optimised_images(teacher, TeacherCE(), SPEC, images=2, batch_size=2, steps=9, lr=1e-12, least=1e-15, patience=3)
    assert rates == pytest.approx([1e-12] * 5 + [1e-13] * 4)


@pytest.mark.parametrize(
    "wrong", [{"images": 0}, {"steps": 0}, {"patience": 0}, {"labels": torch.zeros(3, dtype=torch.int64)}]
)
def test_optimised_images_refuses(wrong: dict[str, Any]) -> None:
    teacher = classifier(cnn())
    with pytest.raises(ValueError, match=r"give (at least 1|a label for each image)"):
        optimised_images(teacher, TeacherCE(), SPEC, **{**FEW, **wrong})


def test_methods_that_read_statistics_refuse_a_teacher_without() -> None:
    with pytest.raises(ValueError, match="BatchNorm"):
        hast_images(vit(), SPEC, **FEW)


def test_batches_and_seeds_start_from_noise_of_their_own() -> None:
    teacher = classifier(cnn())
    started = [
        image
        for seed in (0, 1)
        for image in optimised_images(
            teacher, TeacherCE(), SPEC, images=4, batch_size=2, steps=1, lr=1e-6, seed=seed
        )["pixel_values"]
    ]  # fmt: skip
    near = [(i, j) for i in range(8) for j in range(i) if torch.allclose(started[i], started[j], atol=1e-3)]
    assert near == []


def test_parts_are_all_images_once() -> None:
    pieces = list(minibatches(BATCH, 3))
    assert [len(part["labels"]) for part in pieces] == [3, 3, 2]
    assert torch.equal(torch.cat([part["pixel_values"] for part in pieces]), BATCH["pixel_values"])
