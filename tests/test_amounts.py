"""Numbers that are none are told by their name, before anything is spent on them."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from vision_toys import CLASSES, cnn, images
from zsaq import ImageSpec, quantize_model, reconstruct
from zsaq.train.amounts import check_amounts, check_counts
from zsaq.train.compensation import check_damping
from zsaq.train.randomness import generator
from zsaq.vision.fine_tuning import on_batches
from zsaq.vision.models import blocks, classifier
from zsaq.vision.onepass import onepass_blocks, onepass_blocks_kl, onepass_kl
from zsaq.vision.papers.adadfq import adadfq
from zsaq.vision.papers.adasg import adasg
from zsaq.vision.papers.ait import ait
from zsaq.vision.papers.arc import arc
from zsaq.vision.papers.gdfq import gdfq
from zsaq.vision.papers.genie import genie, genie_images
from zsaq.vision.papers.hast import hast, hast_images
from zsaq.vision.papers.intraq import intraq
from zsaq.vision.papers.plf import plf
from zsaq.vision.papers.psaq import psaq_learned
from zsaq.vision.papers.qimera import qimera
from zsaq.vision.papers.sadag import sadag
from zsaq.vision.papers.synq import genie_synq, synq
from zsaq.vision.papers.texq import texq
from zsaq.vision.presets import uniform
from zsaq.vision.sources.mixtures import beside
from zsaq.vision.sources.pyramid import pyramid_images

SPEC = ImageSpec(CLASSES, 16)
BATCH = {"pixel_values": images(4, 16)}


@pytest.mark.parametrize("value", [0, -1, 2.0, 2.5, float("nan"), True, None, "2"])
def test_counts(value: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(f"steps is {value!r}; give at least 1, as a whole number")):
        check_counts(steps=value)
    check_counts(steps=1)
    check_counts(0, steps=np.int64(0))


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf"), True, None, "0.5"])
def test_amounts(value: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(f"drop is {value!r}; give a finite number from 0 to 1")):
        check_amounts(most=1.0, drop=value)
    check_amounts(most=1.0, drop=np.float32(0.5), rate=1)
    with pytest.raises(ValueError, match="lr is inf; give a finite number of at least 0"):
        check_amounts(lr=float("inf"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("drop", 5.0), ("drop", -1), ("drop", float("nan")), ("round_weight", -1.0), ("budget", -1)],
        *[("lr_bits", float("inf")), ("lr_norm", -1e-3), ("steps", True), ("steps", 2.5), ("batch_size", True)],
    ],
)
def test_what_blocks_cannot_be_learned_with(name: str, value: Any) -> None:
    teacher = classifier(cnn())
    student = quantize_model(teacher, uniform("w4a4", teacher))
    options: dict[str, Any] = {"steps": 1, name: value}
    with pytest.raises(ValueError, match=f"{name} is {value!r}; give"):
        reconstruct(student, teacher, [BATCH], blocks(teacher), **options)


@pytest.mark.parametrize(
    ("make", "given"),
    [
        *[(pyramid_images, {"images": 2.0}), (pyramid_images, {"steps": 2.5}), (pyramid_images, {"labels": -1.0})],
        *[(pyramid_images, {"lr": float("nan")}), (hast_images, {"steps": 2.5}), (hast_images, {"images": 0})],
        *[(genie_images, {"steps": 2.5}), (genie_images, {"images": 2.5})],
    ],
)
def test_what_images_cannot_be_made_with(make: Any, given: dict[str, Any]) -> None:
    ((name, value),) = given.items()
    with pytest.raises(ValueError, match=f"{name} is {value}; give"):
        make(cnn(), SPEC, **{"images": 2, "steps": 1} | given)


def test_what_a_student_cannot_be_tuned_with() -> None:
    teacher: nn.Module = cnn()
    with pytest.raises(ValueError, match="batch_size is 0; give at least 1"):
        hast(teacher, uniform("w4a4", classifier(teacher)), SPEC, BATCH, steps=1, batch_size=0)
    with pytest.raises(ValueError, match="calibration is -1; give at least 0"):
        on_batches(teacher, uniform("w4a4", classifier(teacher)), SPEC, [BATCH], steps=1, calibration=-1)


MAKERS = [adadfq, adasg, ait, arc, gdfq, qimera, texq]
TUNERS = [
    genie,
    genie_synq,
    hast,
    intraq,
    onepass_blocks,
    onepass_blocks_kl,
    onepass_kl,
    plf,
    psaq_learned,
    sadag,
    synq,
]


@pytest.mark.parametrize("value", [0, True, 1.5])
@pytest.mark.parametrize("method", [*MAKERS, *TUNERS], ids=lambda method: method.__name__)
def test_methods_called_directly_check_their_steps(method: Any, value: Any) -> None:
    teacher: nn.Module = cnn()
    with pytest.raises(ValueError, match=f"steps is {value!r}; give at least 1, as a whole number"):
        method(teacher, uniform("w4a4", classifier(teacher)), SPEC, BATCH, steps=value)


@pytest.mark.parametrize("method", MAKERS, ids=lambda method: method.__name__)
def test_generators_check_their_warm_up(method: Any) -> None:
    teacher: nn.Module = cnn()
    for name, least in (("warmup", 0), ("calibration", 1)):
        with pytest.raises(ValueError, match=f"{name} is 1.5; give at least {least}, as a whole number"):
            method(teacher, uniform("w4a4", classifier(teacher)), SPEC, None, steps=1, **{name: 1.5})


def test_numbers_of_numpy_are_numbers() -> None:
    check_damping(np.float32(0.01))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="damping is True; give a positive number"):
        check_damping(True)
    pixels = BATCH["pixel_values"]
    assert torch.equal(beside(pixels, np.int64(1), generator(0)), beside(pixels, 1, generator(0)))  # type: ignore[arg-type]
