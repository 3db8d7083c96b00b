"""One pass, then rounding that is learned from it block by block, on the same images and mixtures, then steps of KL."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vision_toys import CLASSES, cnn, images
from zsaq import Loop, quantize_model
from zsaq.train.objectives import KL
from zsaq.train.one_pass import one_pass
from zsaq.train.randomness import generator
from zsaq.train.reconstruction import reconstruct
from zsaq.train.synthesis import seed_of
from zsaq.train.trainer import distill
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.models import blocks, classifier
from zsaq.vision.onepass import onepass_blocks, onepass_blocks_kl, with_mixtures
from zsaq.vision.papers.gdfq import sgd
from zsaq.vision.presets import preset_config
from zsaq.vision.sources.crops import minibatches
from zsaq.vision.sources.mixtures import beside, mixtures

SPEC = ImageSpec(CLASSES, 16)


def shown(seed: int = 3) -> Tensor:
    return images(24, 16, seed=seed)


@pytest.mark.parametrize("steps", [5, 4000])
def test_it_is_the_pass_and_then_slow_bits_on_the_same_samples(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = classifier(cnn())
    config = preset_config("w2a4", "brecq", teacher, SPEC)
    rates: list[tuple[float, ...]] = []

    def few(*args: Any, **options: Any) -> Any:
        rates.append(tuple(options[name] for name in ("lr_bits", "lr_step", "lr_norm")))
        return reconstruct(*args, **options | {"steps": 5})

    monkeypatch.setattr("zsaq.vision.onepass.reconstruct", few)
    student = onepass_blocks(
        teacher, config, SPEC, {"pixel_values": shown()}, steps=steps, batch_size=8, mixes=2, seed=4
    )  # fmt: skip
    samples = {"pixel_values": beside(shown(), 2, generator(seed_of(seed_of(4, 0), 2)))}
    by_hand = one_pass(quantize_model(teacher, config), teacher, minibatches(samples, 64))
    rate = {5: 1e-2, 4000: 5e-3}[steps]
    reconstruct(
        by_hand, teacher, minibatches(samples, 64), blocks(teacher), steps=5, batch_size=8, lr_bits=rate, lr_step=1e-3,
        lr_norm=1e-3, fitted=True, seed=4,
    )  # fmt: skip
    assert rates == [(rate, 1e-3, 1e-3)]
    state = by_hand.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in student.state_dict().items())


def test_steps_of_kl_come_after_the_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    teacher = classifier(cnn())
    config, pixels = preset_config("w2a4", "brecq", teacher, SPEC), {"pixel_values": shown()}
    rates = {"lr_bits": 0.1, "lr_step": 2e-3, "lr_norm": 3e-3}
    blockwise: dict[str, Any] = {"steps": 3, "batch_size": 8, "mixes": 1, "damping": 0.02, "seed": 4} | rates
    by_hand = onepass_blocks(teacher, config, SPEC, pixels, **blockwise)
    before = {name: value.clone() for name, value in by_hand.state_dict().items()}
    distill(by_hand, teacher, mixtures(pixels, 8, 4), KL(3.0), sgd(by_hand, 1e-3), 5, Loop())
    student = onepass_blocks_kl(teacher, config, SPEC, pixels, tuning_steps=5, lr=1e-3, temperature=3.0, **blockwise)
    state = student.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in by_hand.state_dict().items())
    assert not all(torch.equal(value, state[name]) for name, value in before.items())
    assert "on mixtures that the steps did not see" in capsys.readouterr().err


def test_steps_that_do_harm_are_taken_back(capsys: pytest.CaptureFixture[str]) -> None:
    teacher = classifier(cnn())
    config, pixels = preset_config("w2a4", "brecq", teacher, SPEC), {"pixel_values": shown()}
    few: dict[str, Any] = {"steps": 2, "batch_size": 8, "mixes": 1, "seed": 4}
    before = onepass_blocks(teacher, config, SPEC, pixels, **few).state_dict()
    after = onepass_blocks_kl(teacher, config, SPEC, pixels, tuning_steps=4, lr=10.0, **few).state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert "the steps did harm, so the student is as it was before them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"tuning_steps": 0}, "tuning_steps is 0; give at least 1"),
        ({"batch_size": 1}, "batch_size is 1; give at least 2"),
        ({"temperature": 0.0}, "temperature 0.0; give positive numbers"),
        ({"lr": float("nan")}, "lr is nan; give a finite number"),
    ],
)
def test_what_the_last_steps_cannot_take_costs_no_block(
    wrong: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any, **__: Any) -> None:
        raise AssertionError("blocks are learned")

    monkeypatch.setattr("zsaq.vision.onepass.onepass_blocks", none)
    teacher = classifier(cnn())
    config = preset_config("w2a4", "brecq", teacher, SPEC)
    with pytest.raises(ValueError, match=told):
        onepass_blocks_kl(teacher, config, SPEC, {"pixel_values": shown()}, **wrong)


def test_blocks_are_learned_from_a_teacher_of_any_width() -> None:
    answers = []
    for dtype in (torch.float32, torch.float64):
        teacher = classifier(cnn().to(dtype))
        config = preset_config("w4a4", "brecq", teacher, SPEC)
        student = onepass_blocks(teacher, config, SPEC, {"pixel_values": shown()}, steps=3, batch_size=8, mixes=1)
        assert all(parameter.dtype == torch.float32 for parameter in student.parameters())
        with torch.no_grad():
            answers.append(student(shown()))
    torch.testing.assert_close(*answers, rtol=0, atol=0.5 * float(answers[0].std()))


def test_there_is_a_mixture_of_each_image_where_the_pass_alone_has_no_room() -> None:
    pixels = torch.zeros(1, 3, 1024, 1024).expand(5, -1, -1, -1)  # five million pixels
    for least in (0, 1):
        made = with_mixtures({"pixel_values": pixels}, None, 0, Loop(), "onepass", least)
        assert len(made["pixel_values"]) == 5 * (1 + least)
