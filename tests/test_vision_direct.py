"""Methods that fine-tune on crops of images made once: what is trained, left alone, repeated."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vision_toys import CLASSES, cnn, images, logits, resnet, vit
from zsaq import KL, Loop, Pair, QuantConfig, quantize_model
from zsaq.quant.ranges import static_ranges
from zsaq.train.objectives import CE, AtWorstInput
from zsaq.train.pair import Batch
from zsaq.train.trainer import calibrate
from zsaq.vision.fine_tuning import fine_tune
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.losses.features import ActivationMap, ChannelAttention
from zsaq.vision.losses.labels import EasyCE
from zsaq.vision.models import classifier
from zsaq.vision.papers import synq as module
from zsaq.vision.papers.hast import hast, hast_objective
from zsaq.vision.papers.intraq import intraq
from zsaq.vision.papers.plf import FeatureMSE, plf
from zsaq.vision.papers.synq import synq, synq_objective
from zsaq.vision.presets import psaq, uniform
from zsaq.vision.spectrum import low_pass

SPEC = ImageSpec(CLASSES, 16)
SHORT: dict[str, Any] = {"steps": 3, "batch_size": 4, "lr": 1e-3}
BATCH: Batch = {"pixel_values": images(8), "labels": torch.arange(8) % CLASSES}


METHODS: dict[str, Any] = {
    "hast": lambda t, c, s, b, **o: hast(t, c, s, b, **o, attention=10.0),
    "intraq": intraq,
    "plf": lambda t, c, s, b, **o: plf(t, c, s, b, **o, features=1.0),
    "synq": synq,
    "synq with hast": lambda t, c, s, b, **o: synq(t, c, s, b, **o, attention=10.0, epsilon=0.01),
}


@pytest.mark.parametrize("name", METHODS)
def test_methods_train_the_student_and_repeat(name: str, tmp_path: Path) -> None:
    teacher = cnn()
    config, before = uniform("w4a4", teacher), logits(classifier(teacher))
    student, again = (
        METHODS[name](teacher, config, SPEC, BATCH, **SHORT, loop=Loop(folder=tmp_path)) for _ in range(2)
    )
    torch.testing.assert_close(logits(student), logits(again))
    assert torch.equal(logits(classifier(teacher)), before)
    plain = quantize_model(classifier(cnn()), config)
    moved = [not torch.equal(p, q) for p, q in zip(student.parameters(), plain.parameters(), strict=True)]
    assert sum(moved) > len(moved) / 2
    ranges = static_ranges(student)
    assert ranges and all(r.observer.updates == 2 and not r.observing for r in ranges)  # 8 images, 4 at a time


def test_fine_tuning_takes_ranges_and_batches_from_elsewhere(tmp_path: Path) -> None:
    teacher = classifier(cnn())
    given = [{"pixel_values": images(4, seed=s)} for s in range(5)]
    student = quantize_model(teacher, uniform("w4a4", teacher))
    fine_tune(
        student, teacher, BATCH, KL(), steps=5, lr=1e-3, batch_size=4, loop=Loop(folder=tmp_path), batches=given,
        ranges=given[:3],
    )  # fmt: skip
    assert {m.observer.updates for m in static_ranges(student)} == {3}
    with pytest.raises(ValueError, match="ran out"):
        fine_tune(student, teacher, BATCH, KL(), steps=6, lr=1e-3, batch_size=4, loop=Loop(), batches=given)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_ranges_from_elsewhere(name: str, tmp_path: Path) -> None:
    teacher, given = cnn(), [{"pixel_values": images(4, seed=s)} for s in range(5)]
    config, loop = uniform("w4a4", teacher), Loop(folder=tmp_path)
    student = METHODS[name](teacher, config, SPEC, BATCH, **SHORT, loop=loop, ranges=given)
    plain = calibrate(quantize_model(classifier(cnn()), config), given)
    for ours, known in zip(static_ranges(student), static_ranges(plain), strict=True):
        assert ours.observer.updates == 5
        assert torch.equal(ours.scale, known.scale) and torch.equal(ours.zero, known.zero)


def test_synq_refuses_ranges_for_a_student_that_has_its_own() -> None:
    teacher = cnn()
    student = quantize_model(classifier(teacher), uniform("w4a4", teacher))
    with pytest.raises(ValueError, match="it keeps its own"):
        synq(teacher, student, SPEC, BATCH, **SHORT, ranges=[BATCH])


def terms(objective: Any) -> dict[str, float]:
    return {type(part).__name__: weight for weight, part in objective.parts}


def test_the_objectives_are_the_papers() -> None:
    teacher = classifier(cnn())
    assert terms(hast_objective(teacher, 4000.0, 0.01)) == {"KL": 20.0, "ChannelAttention": 4000.0, "AtWorstInput": 1.0}
    options: dict[str, Any] = {"labels": 0.5, "difficulty": 0.5, "maps": 50.0, "attention": 0.0, "epsilon": None}
    for change, known in (
        ({}, {"KL": 20.0, "EasyCE": 0.5, "ActivationMap": 50.0}),
        ({"maps": 0.0}, {"KL": 20.0, "EasyCE": 0.5}),
        ({"difficulty": None}, {"KL": 20.0, "CE": 0.5, "ActivationMap": 50.0}),
        ({"labels": 0.0}, {"KL": 20.0, "ActivationMap": 50.0}),
        (
            {"attention": 1000.0, "epsilon": 0.01},
            {"KL": 20.0, "EasyCE": 0.5, "ChannelAttention": 1000.0, "AtWorstInput": 1.0, "ActivationMap": 50.0},
        ),
    ):
        assert terms(synq_objective(teacher, BATCH, **{**options, **change})) == known


def test_synq_filters_what_it_trains_and_calibrates_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def keep(student: nn.Module, teacher: nn.Module, images: Batch, objective: Any, **options: Any) -> nn.Module:
        seen.update(options, images=images, view=next(iter(options["batches"])))
        return student

    monkeypatch.setattr(module, "fine_tune", keep)
    teacher, config = cnn(), QuantConfig.parse("w4a16")
    synq(teacher, config, SPEC, BATCH, steps=1, batch_size=4, cutoff=0.1, folder=tmp_path)
    assert torch.allclose(seen["images"]["pixel_values"], low_pass(BATCH["pixel_values"], 0.1))
    clear = seen["view"]["pixel_values"]
    synq(teacher, config, SPEC, BATCH, steps=1, batch_size=4, cutoff=None)
    assert torch.equal(seen["images"]["pixel_values"], BATCH["pixel_values"])
    assert torch.allclose(clear, low_pass(seen["view"]["pixel_values"], 0.1))
    assert {p.name for p in tmp_path.iterdir()} == {"filter.png", "filter-spectrum.png"}


@pytest.mark.parametrize("make", [vit, resnet])
def test_synq_takes_images_without_labels_and_transformers_teachers(make: Any, tmp_path: Path) -> None:
    teacher, pixels = make(), images(6, 16)
    student = synq(teacher, psaq("w4a8", teacher), SPEC, {"pixel_values": pixels}, **SHORT, loop=Loop(folder=tmp_path))
    assert type(student) is type(teacher)
    log = (tmp_path / "distill.jsonl").read_text()
    assert "ActivationMap" in log and "EasyCE" in log
    assert logits(student, pixels).isfinite().all()


def test_synq_trains_on_what_another_method_made(tmp_path: Path) -> None:
    teacher = cnn()
    student = hast(teacher, uniform("w4a4", teacher), SPEC, BATCH, **SHORT, attention=1.0)
    before = [p.detach().clone() for p in student.parameters()]
    assert synq(teacher, student, SPEC, {"pixel_values": images(6)}, **SHORT, loop=Loop(folder=tmp_path)) is student
    assert any(not torch.equal(p, q) for p, q in zip(student.parameters(), before, strict=True))
    assert {m.observer.updates for m in static_ranges(student)} == {2}


def test_hast_and_maps_go_together_in_one_step() -> None:
    teacher = classifier(cnn()).requires_grad_(False)
    student = quantize_model(teacher, QuantConfig.parse("w3a16"))
    clean = KL(20.0) + 0.5 * EasyCE(0.5) + 10.0 * ChannelAttention(nn.BatchNorm2d)
    total = clean + 1.0 * AtWorstInput(clean, 0.01) + 50.0 * ActivationMap(teacher, BATCH["pixel_values"])
    pair = Pair(teacher, student, BATCH, total.captures)
    value, values = total.weighted(pair)
    value.backward()
    assert set(values) == {"KL", "EasyCE", "ChannelAttention", "AtWorstInput", "ActivationMap"}
    assert values["AtWorstInput"].item() > clean(pair).item()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in student.parameters())


def test_feature_mse() -> None:
    teacher = classifier(cnn())
    student = quantize_model(teacher, QuantConfig.parse("w3a16"))
    objective = FeatureMSE(nn.BatchNorm2d)
    pair = Pair(teacher, student, BATCH, objective.captures)
    sides = [side.seen[capture] for side, capture in zip((pair.teacher, pair.student), objective.captures, strict=True)]
    known = sum(((p - q.detach()) ** 2).mean().item() for (_, p), (_, q) in zip(*sides, strict=True))
    assert objective(pair).item() == pytest.approx(known, rel=1e-5) and known > 0


def test_plf_refuses_thresholds_out_of_order() -> None:
    with pytest.raises(ValueError, match="lowest"):
        plf(cnn(), QuantConfig.parse("w4a16"), SPEC, BATCH, **SHORT, lowest=0.5, highest=0.2)


def test_labels_are_read_where_the_method_says_so() -> None:
    teacher = cnn()
    config = uniform("w4a4", teacher)
    bare = {"pixel_values": BATCH["pixel_values"]}
    hast(teacher, config, SPEC, bare, **SHORT, attention=1.0)
    plf(teacher, config, SPEC, bare, **SHORT, features=1.0)
    with pytest.raises(ValueError, match="needs labels"):
        intraq(teacher, config, SPEC, bare, **SHORT)
    assert CE.captures == ()
