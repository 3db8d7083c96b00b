"""The table of vision methods: every row on a toy, what rows share, and their settings."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import BatchFeature

from vision_toys import CLASSES, cnn, images, resnet, vit
from zsaq import Batch, Loop, coverage
from zsaq.method import Budget, Effort
from zsaq.quant.ranges import static_ranges
from zsaq.vision.choice import preset_for
from zsaq.vision.fine_tuning import on_batches
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.images import MAKERS, images_of
from zsaq.vision.job import ImageJob
from zsaq.vision.methods import METHODS
from zsaq.vision.papers.ait import divergence_alone
from zsaq.vision.papers.genie import genie, genie_images
from zsaq.vision.papers.intraq import intraq_images
from zsaq.vision.papers.psaq import psaq_learned
from zsaq.vision.papers.sadag import sadag
from zsaq.vision.presets import preset_config
from zsaq.vision.published import TABLE, published
from zsaq.vision.rows import NEEDS, fitted, settings_of

FAST = {"rtn-noise", "rtn-real", "zeroq", "dsg", "psaq", "intraq", "plf", "hast", "synq", "genie-noise", "distill"} | {
    "onepass",
    "onepass-noise",
    "onepass-pink",
    "onepass-psaq",
    "onepass-kl",
    "onepass-blocks",
    "onepass-blocks-kl",
}
FEW = {
    "images": 4, "image_steps": 2, "warmup": 2, "calibration": 2, "steps": 2, "batch_size": 4, "centre_steps": 2,
    "tuning_steps": 2, "tuning_batch_size": 4, "warm_steps": 1, "sharpening": 1,
}  # fmt: skip
BATCHES = [{"pixel_values": images(3, 32, seed=seed)} for seed in range(3)]


def forbidden() -> Tensor:
    raise AssertionError("real images are read")


def toy(kind: str, real: Callable[[], Tensor] | None = forbidden) -> ImageJob:
    teacher, size = (vit(), 16) if kind == "vit" else (resnet(), 32)
    return ImageJob(teacher, ImageSpec(CLASSES, size), real=real)


def student_of(name: str, job: ImageJob, preset: str | None = None) -> Any:
    method = METHODS[name]
    config = preset_config("w4a4", preset or preset_for(method, job.teacher), job.teacher, job.spec)
    budget = Budget.of(method, "light", {count: FEW[count] for count in method.budgets})
    return method.fit(job, config, budget, 0, Loop(Accelerator(cpu=True)))


def highest(student: nn.Module) -> list[float]:
    return [float(each.scale) for each in static_ranges(student)]


@pytest.mark.parametrize("name", [pytest.param(m, marks=() if m in FAST else pytest.mark.slow) for m in METHODS])
def test_every_method_makes_a_student_and_leaves_its_teacher_alone(name: str) -> None:
    kind = "vit" if METHODS[name].needs.startswith("a vision transformer") else "resnet"
    job, untouched = toy(kind), toy(kind).teacher.state_dict()
    if name.endswith("-real"):
        job.real = lambda: images(6, job.spec.size, seed=6)
    job.given = BATCHES
    student = student_of(name, job)
    plan = coverage(student)
    assert plan and not any("left alone" in how for layer, how in plan.items() if "classifier" in layer)
    assert all(torch.equal(value, untouched[key]) for key, value in job.teacher.state_dict().items())
    pixels = images(4, job.spec.size, seed=5)
    with torch.no_grad():
        answers = student(pixel_values=pixels).logits
        assert answers.isfinite().all() and not torch.equal(answers, job.teacher(pixel_values=pixels).logits)


def test_rows_say_what_they_read() -> None:
    assert {m.name for m in METHODS.values() if not m.zero_shot} == {
        "rtn-real", "onepass-real", "onepass-blocks-real", "onepass-blocks-kl-real", "onepass-kl-real", "synq-real",
        "genie-real", "psaq-real", "distill",
    }  # fmt: skip
    assert all((m.inputs in ("real images", "given batches")) != m.zero_shot for m in METHODS.values())
    assert all(m.idea and m.cost and m.needs in NEEDS and m.preset for m in METHODS.values())
    assert all(name == m.name for name, m in METHODS.items())


def test_budgets_grow_with_the_effort_but_for_batches() -> None:
    for method in METHODS.values():
        for count, (light, default, best) in method.budgets.items():
            assert light <= default <= best or "batch_size" in count, (method.name, count)


@pytest.mark.parametrize("effort", ["light", "default", "best"])
def test_every_budget_can_be_made_and_printed(effort: Effort) -> None:
    assert "steps 200" in str(Budget.of(METHODS["genie"], "light"))
    assert all(Budget.of(method, effort).numbers == method.options(effort) for method in METHODS.values())


def test_makers_and_fits_have_one_signature_each() -> None:
    for maker in (*MAKERS.values(), genie_images):
        parameters = inspect.signature(maker).parameters
        assert list(parameters)[:2] == ["teacher", "spec"]
        assert {"images", "steps", "seed", "folder"} <= {n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    sized = [method for method in TABLE if "config" in inspect.signature(method).parameters]
    for fit in (*sized, genie, psaq_learned, sadag, divergence_alone):
        parameters = inspect.signature(fit).parameters
        assert list(parameters)[:4] == ["teacher", "config", "spec", "images"]
        named = {n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
        assert {"steps", "batch_size", "seed", "loop", "folder"} <= named == set(parameters) - set(list(parameters)[:4])


@pytest.mark.parametrize("method", TABLE)
def test_published_settings_are_arguments(method: Any) -> None:
    arguments = inspect.signature(method).parameters
    small, large = published(method, ImageSpec(10, 64)), published(method, ImageSpec(1000, 65))
    assert {*small, *large} <= set(arguments) and small != large
    defaults = {name: arguments[name].default for name in large if name not in ("mix", "from_teacher")}
    if method is not intraq_images:  # whose defaults are CIFAR-10's
        assert defaults == {name: value for name, value in large.items() if name in defaults}


def test_settings_are_a_fit_s_own_and_what_is_given_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def fit(teacher: nn.Module, config: Any, spec: Any, images: Any, *, steps: int, lr: float = 1.0,
            soft: float | None = 2.0, sized: int = 3, seed: int = 0, loop: Any = None,
            folder: Any = None) -> nn.Module:  # fmt: skip
        seen.update(steps=steps, lr=lr, soft=soft, sized=sized)
        return teacher

    monkeypatch.setitem(TABLE, fit, ({"lr": 0.5, "sized": 4}, {}))
    assert settings_of(fit, {"steps"}) == {"soft": 2.0, "sized": None, "speed": 1.0}
    row: Any = {"needs": "any", "preset": "brecq", "cost": "none", "budgets": {"steps": (1, 2, 3)}}
    cases: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
        ({}, {}, {"steps": 2, "lr": 0.5, "soft": 2.0, "sized": 4}),
        ({}, {"speed": 10.0, "sized": 7, "steps": 9}, {"steps": 9, "lr": 5.0, "soft": 2.0, "sized": 7}),
        ({}, {"soft": None, "sized": None}, {"steps": 2, "lr": 0.5, "soft": None, "sized": 4}),
        ({"soft": None}, {}, {"steps": 2, "lr": 0.5, "soft": None, "sized": 4}),
    ]
    for options, given, expected in cases:
        method = fitted("toy", fit, "noise", "nothing", **row, **options)
        job: Any = toy("resnet")
        config = preset_config("w4a4", "brecq", job.teacher)
        method.fit(job, config, Budget.of(method, "default", given), 0, Loop(Accelerator(cpu=True)))
        assert seen == expected
    fixed: Any = {"soft": None}
    with pytest.raises(ValueError, match="has no option soft"):
        Budget.of(fitted("toy", fit, "noise", "nothing", **row, **fixed), "default", {"soft": 1.0})


def test_real_and_given_images_that_are_not_there_are_an_error() -> None:
    job = toy("resnet", real=None)
    with pytest.raises(ValueError, match="no real images"):
        student_of("rtn-real", job)
    with pytest.raises(ValueError, match="no images of your own"):
        student_of("distill", job)


@pytest.mark.parametrize("name", ["synq-psaq", "psaq", "distill"])
def test_a_configuration_that_does_not_fit_costs_no_image(name: str) -> None:
    job = toy("vit")
    with pytest.raises(ValueError, match="preset brecq or psaq"):
        student_of(name, job, "uniform")
    assert not job.cache


def test_each_row_of_synq_takes_its_ranges_and_shows_what_its_filter_does(tmp_path: Path) -> None:
    job = replace(toy("resnet"), pictures=tmp_path)
    hi = {
        name: highest(student_of(name, job, "uniform"))
        for name in ("zeroq", "synq", "synq-no-filter", "synq-zeroq-ranges")
    }  # fmt: skip
    assert set(job.cache) == {("zeroq", 0, 4, 2), ("hast", 0, 4, 2)}
    assert hi["synq-zeroq-ranges"] == hi["synq-no-filter"] == hi["zeroq"] != hi["synq"]
    assert {"filter.png", "filter-spectrum.png"} == {path.name for path in (tmp_path / "synq-0").iterdir()}
    assert {"images.png", "spectrum.png", "losses.png"} == {path.name for path in (tmp_path / "hast-0").iterdir()}


def test_images_are_shared_only_by_the_same_numbers() -> None:
    job = toy("resnet")
    first: Any = images_of(job, "zeroq", 0, images=3, steps=2)
    assert images_of(job, "zeroq", 0, images=3, steps=2) is first
    for seed, count, steps in ((1, 3, 2), (0, 2, 2), (0, 3, 1)):
        other: Any = images_of(job, "zeroq", seed, images=count, steps=steps)
        assert len(other["pixel_values"]) == count and not torch.equal(
            other["pixel_values"][:2], first["pixel_values"][:2]
        )
    assert images_of(job, "genie", 0, images=4, steps=1) is images_of(job, "genie", 0, images=4, steps=1)
    assert [len(group.latents) for group in images_of(job, "sources", 0, images=4, steps=1)] == [4]  # type: ignore[union-attr]
    assert len(job.cache) == 5


def whole(batches: list[Batch]) -> Batch:
    return {"pixel_values": torch.cat([batch["pixel_values"] for batch in batches])}


@pytest.mark.parametrize("form", [list, iter, whole, lambda batches: BatchFeature(whole(batches))])
def test_one_s_own_images_train_a_student(form: Any) -> None:
    teacher, given = resnet(), form(BATCHES)
    config = preset_config("w4a4", "uniform", teacher)
    few: dict[str, Any] = {"steps": 3, "batch_size": 3, "calibration": 2, "loop": Loop(Accelerator(cpu=True))}
    student = on_batches(teacher, config, ImageSpec(CLASSES, 32), given, **few, lr=1e-3)
    assert {each.observer.updates for each in static_ranges(student)} == {2}
    moved = [not torch.equal(p, q) for p, q in zip(student.parameters(), resnet().parameters(), strict=True)]
    assert sum(moved) > len(moved) / 2


def test_one_s_own_images_run_out_are_empty_or_of_another_size() -> None:
    teacher, spec = resnet(), ImageSpec(CLASSES, 32)
    config = preset_config("w4a4", "uniform", teacher)
    wrong: list[tuple[Any, str]] = [
        (iter(BATCHES), "ran out"), ([], "saw nothing"), ([images(3, 32)], "a batch is Tensor"),
        ([{"pixel_values": images(3, 16)}], r"give mappings with pixel_values \[B, 3, 32, 32\]"),
    ]  # fmt: skip
    for given, message in wrong:
        with pytest.raises(ValueError, match=message):
            on_batches(teacher, config, spec, given, steps=9, batch_size=3, loop=Loop(Accelerator(cpu=True)))


def test_labels_of_one_s_own_images_are_not_read() -> None:
    labelled: list[Batch] = [batch | {"labels": torch.full((3,), 99)} for batch in BATCHES]
    job = toy("resnet")
    one, two = (student_of("distill", replace(job, given=given)) for given in (BATCHES, labelled))
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))


def test_a_plain_module_is_shown_pixel_values() -> None:
    student = student_of("rtn-noise", ImageJob(cnn(), ImageSpec(CLASSES, 16)))
    with torch.no_grad():
        assert student(pixel_values=images(2, 16)).shape == (2, CLASSES)
