"""AIT on each of its hosts: a short run that changes integers, and the parts it is made of."""

from typing import Any

import pytest
import torch

from vision_toys import CLASSES, cnn
from zsaq.quant.config import Grid, QuantConfig
from zsaq.quant.model import quantize_model
from zsaq.train.inundation import weight_codes
from zsaq.train.loop import Loop
from zsaq.train.objectives import KL
from zsaq.train.synthesis import Source
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.models import classifier
from zsaq.vision.papers import ait as module
from zsaq.vision.papers.ait import ait
from zsaq.vision.papers.arc import CIFAR10, SearchedGenerator
from zsaq.vision.papers.qimera import Superposed
from zsaq.vision.sources.generators import Conditional

SPEC = ImageSpec(CLASSES, 16)
W4 = QuantConfig(weight=Grid(4, symmetric=False), ranges="minmax")
SHORT: Any = {"steps": 2, "warmup": 1, "calibration": 1, "lr": 1e-3, "share": 0.02}


def hosts() -> dict[str, Source]:
    return {
        "gdfq": Conditional(SPEC, 4),
        "arc": SearchedGenerator(SPEC, 4, CIFAR10),
        "qimera": Superposed(SPEC, 4, cnn().linear.weight.detach()),
    }


@pytest.mark.parametrize("host", ["gdfq", "arc", "qimera"])
def test_every_host_changes_integers(host: str) -> None:
    teacher = classifier(cnn())
    loop = Loop(schedule="constant", warmup=0.0)
    student = ait(teacher, W4, SPEC, source=hosts()[host], loop=loop, **SHORT)
    before = dict(quantize_model(teacher, W4).named_parameters())
    codes = weight_codes(student)
    names = {id(p): name for name, p in student.named_parameters()}
    for c in codes:
        old = c.quantizer.codes(before[names[id(c.weight)]].flatten(1))[0]
        assert int((c.quantizer.codes(c.rows())[0] != old).sum()) >= 1, names[id(c.weight)]
    assert all(bool(p.isfinite().all()) for p in student.parameters())


def test_the_same_seed_gives_the_same_student() -> None:
    teacher = classifier(cnn())
    one, two = (ait(teacher, W4, SPEC, batch_size=4, seed=3, **SHORT) for _ in range(2))
    hosted = ait(teacher, W4, SPEC, source=Conditional(SPEC, 4, seed=3), **SHORT)
    for (name, p), q, r in zip(one.named_parameters(), two.parameters(), hosted.parameters(), strict=True):
        assert torch.equal(p, q) and torch.equal(p, r), name


def test_the_divergence_is_the_mean_over_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        module, "alternate", lambda student, teacher, synthesizer, objective, *rest, **options: seen.append(objective)
    )
    ait(classifier(cnn()), W4, SPEC, source=Conditional(SPEC, 4), **SHORT)
    ((weight, part),) = seen[0].parts
    assert isinstance(part, KL) and part.temperature == 20 and weight == 1 / CLASSES
