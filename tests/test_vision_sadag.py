"""SADAG: images sharpened where the student is worst, and the students that they make."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from toys_matching import SPEC, models, pair
from vision_toys import cnn, images, vit
from zsaq import Batch, QuantConfig
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.losses.matching import Diversity, GradientMatching, LayerGradient
from zsaq.vision.models import At, classifier
from zsaq.vision.papers import sadag as module
from zsaq.vision.papers.genie import genie_sources
from zsaq.vision.papers.psaq import psaq_learned
from zsaq.vision.papers.sadag import at_head, sadag, sharpen, unrolled
from zsaq.vision.presets import psaq, uniform
from zsaq.vision.sources.pixels import Unrolled
from zsaq.vision.sources.swing import Latents


def test_sharpening_moves_images_and_keeps_the_student() -> None:
    teacher, student = models(cnn())
    source = Latents(6, SPEC)
    before = source()["pixel_values"].detach()
    kept = [p.clone() for p in student.parameters()]
    batch = sharpen([source], teacher, student, steps=4)
    assert batch["pixel_values"].shape == before.shape and not torch.equal(batch["pixel_values"], before)
    assert all(torch.equal(a, b) for a, b in zip(kept, student.parameters(), strict=True))


@pytest.mark.parametrize(("steps", "every"), [(1, 1), (25, 1), (500, 1), (2000, 4)])
def test_decay_keeps_its_share_of_the_steps(monkeypatch: pytest.MonkeyPatch, steps: int, every: int) -> None:
    class Told(Exception):
        pass

    def write(optimizer: torch.optim.Optimizer, step_size: int, gamma: float) -> None:
        assert gamma == 0.95
        raise Told(step_size)

    teacher, student = models(cnn())
    monkeypatch.setattr(module, "StepLR", write)
    for given, expected in ((None, every), (7, 7)):
        with pytest.raises(Told, match=f"^{expected}$"):
            sharpen([Latents(2, SPEC)], teacher, student, steps=steps, decay_every=given)


@pytest.mark.parametrize("make", [vit, cnn])
def test_given_images_are_sharpened_in_their_pixels(make: Any) -> None:
    """Without BatchNorm what is left are the two objectives on gradients, and they fall."""
    teacher, student = models(make())
    start = {"pixel_values": images(6), "labels": torch.zeros(6)}
    batch = sharpen(unrolled(start, 6), teacher, student, steps=12, decay_every=12)
    assert batch.keys() == {"pixel_values"} and batch["pixel_values"].shape == (6, 3, 16, 16)
    assert 0 < (batch["pixel_values"] - start["pixel_values"]).abs().max() < 0.2
    layer = at_head(teacher)

    def apart(pixels: Tensor) -> float:
        source, both = Unrolled(pixels), pair(teacher, student, layer, pixels)
        matching = GradientMatching(source, layer, 2.0 * (pixels[0].numel() / 256) ** 0.5)
        return float((matching(both) + Diversity(layer)(both)).detach())

    assert make is cnn or apart(batch["pixel_values"]) < apart(start["pixel_values"])


def test_given_images_make_a_student_of_a_transformer(tmp_path: Path) -> None:
    teacher, start = vit(), {"pixel_values": images(6, seed=3), "labels": torch.zeros(6)}
    seen: list[Tensor] = []

    def learn(teacher: nn.Module, config: QuantConfig, spec: ImageSpec, sharp: Batch, **options: Any) -> nn.Module:
        seen.append(sharp["pixel_values"])
        return psaq_learned(teacher, config, spec, sharp, **options)

    few: dict[str, Any] = {"steps": 1, "warm_steps": 1, "sharpening": 2, "batch_size": 4, "group": 4}
    student = sadag(teacher, psaq("w4a4", teacher), SPEC, start, **few, learn=learn, folder=tmp_path)
    assert seen[0].shape == (6, 3, 16, 16) and not seen[0].requires_grad
    assert 0 < (seen[0] - start["pixel_values"]).abs().max() < 0.03
    assert (tmp_path / "images.png").exists()
    with torch.no_grad():
        assert student(pixel_values=images(2)).logits.isfinite().all()


def test_genie_s_sources_make_a_student_and_stay_as_they_are() -> None:
    teacher = classifier(cnn())
    inner = LayerGradient(At(("module.layer2.0.conv2",)), sketch=8)
    groups, _ = genie_sources(teacher, SPEC, images=8, group=4, steps=2)
    before = [source.latents.detach().clone() for source in groups]
    student = sadag(
        teacher, uniform("w3a3", teacher), SPEC, groups, steps=2, warm_steps=2, sharpening=2, layer=inner, batch_size=4
    )
    assert all(torch.equal(source.latents, kept) for source, kept in zip(groups, before, strict=True))
    with torch.no_grad():
        assert student(pixel_values=images(2)).isfinite().all()


def test_what_cannot_be_is_said() -> None:
    teacher, student = models(cnn())
    with pytest.raises(ValueError, match="radius is 0"):
        GradientMatching(Latents(2, SPEC), at_head(teacher), 0.0)
    with pytest.raises(ValueError, match="slack is 1"):
        Diversity(at_head(teacher), 1.0)
    with pytest.raises(ValueError, match="sketch is 0"):
        LayerGradient(nn.Linear, sketch=0)
    with pytest.raises(ValueError, match="decay_every is 0"):
        sharpen([], teacher, student, decay_every=0)
    with pytest.raises(ValueError, match="group is 0"):
        unrolled({"pixel_values": images(2)}, 0)
    norms = LayerGradient(nn.BatchNorm2d)
    with pytest.raises(ValueError, match="one linear layer or convolution"):
        norms(pair(teacher, student, norms, images(2)))
