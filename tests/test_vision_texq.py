"""TexQ's centres, its mixed images, and a short run."""

from pathlib import Path
from typing import Any

import torch

from vision_toys import CLASSES, cnn, images
from zsaq import Loop
from zsaq.train.pair import Batch, run_model
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.losses.moments import moments_of
from zsaq.vision.models import classifier
from zsaq.vision.papers.texq import centres, mixup, texq
from zsaq.vision.presets import uniform

SPEC = ImageSpec(CLASSES, 16)
SHORT: dict[str, Any] = {"steps": 3, "batch_size": 4, "lr": 1e-3}
BATCH: Batch = {"pixel_values": images(8), "labels": torch.arange(8) % CLASSES}


def test_centres_are_statistics_of_an_image_for_each_class() -> None:
    teacher = classifier(cnn())
    targets = centres(teacher, SPEC, steps=3, texture=1.0)
    noise = moments_of(teacher, [{"pixel_values": torch.randn(CLASSES, 3, 16, 16)}])
    assert [m.mean.shape for m in targets] == [m.mean.shape for m in noise]
    assert any(not torch.allclose(a.mean, b.mean) for a, b in zip(targets, noise, strict=True))


def test_mixed_images_are_between_two_of_their_batch_and_have_no_label() -> None:
    (batch,) = mixup(iter([BATCH]), seed=3)
    assert set(batch) == {"pixel_values"}
    x, y = BATCH["pixel_values"], batch["pixel_values"]
    shares = []
    for i in range(8):
        # y_i = s x_i + (1 - s) x_j for some j: the j with no residual
        fits = [
            (float(((y[i] - x[j]) * (x[i] - x[j])).sum() / (x[i] - x[j]).square().sum()), j) for j in range(8) if j != i
        ]
        errors = [((y[i] - x[j] - s * (x[i] - x[j])).abs().max().item(), s) for s, j in fits]
        error, share = min(errors)
        if not torch.allclose(y[i], x[i]):
            assert error < 1e-5
            shares.append(share)
    assert len(shares) > 4 and max(shares) - min(shares) < 1e-4 and 0 < shares[0] < 1


def test_texq_runs_and_repeats(tmp_path: Path) -> None:
    teacher, options = cnn(), {**SHORT, "warmup": 1, "calibration": 2, "centre_steps": 2}
    config = uniform("w4a4", teacher)
    student = texq(teacher, config, SPEC, **options, loop=Loop(folder=tmp_path))
    again = texq(teacher, config, SPEC, **options, loop=Loop())
    batch = {"pixel_values": images(4)}
    with torch.no_grad():
        answers, known = (run_model(model, batch).logits for model in (student, again))
    torch.testing.assert_close(answers, known)
    assert answers.isfinite().all()
