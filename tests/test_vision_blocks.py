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
    rates: list[tuple[float, float]] = []

    def few(*args: Any, **options: Any) -> Any:
        rates.append((options["lr_bits"], options["lr_step"]))
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
        fitted=True, seed=4,
    )  # fmt: skip
    assert rates == [(rate, 1e-3)]
    state = by_hand.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in student.state_dict().items())


def test_steps_of_kl_come_after_the_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    teacher = classifier(cnn())
    config, pixels = preset_config("w2a4", "brecq", teacher, SPEC), {"pixel_values": shown()}
    blockwise: dict[str, Any] = {"steps": 3, "batch_size": 8, "mixes": 1, "damping": 0.02, "seed": 4}
    by_hand = onepass_blocks(teacher, config, SPEC, pixels, lr_bits=0.1, lr_step=2e-3, **blockwise)
    before = {name: value.clone() for name, value in by_hand.state_dict().items()}
    distill(by_hand, teacher, mixtures(pixels, 8, 4), KL(3.0), sgd(by_hand, 1e-3), 5, Loop())
    student = onepass_blocks_kl(
        teacher, config, SPEC, pixels, tuning_steps=5, lr=1e-3, temperature=3.0, lr_bits=0.1, lr_step=2e-3, **blockwise
    )
    state = student.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in by_hand.state_dict().items())
    assert not all(torch.equal(value, state[name]) for name, value in before.items())
    assert "on mixtures that the steps did not see" in capsys.readouterr().err


def test_there_is_a_mixture_of_each_image_where_the_pass_alone_has_no_room() -> None:
    pixels = torch.zeros(1, 3, 1024, 1024).expand(5, -1, -1, -1)  # five million pixels
    for least in (0, 1):
        made = with_mixtures({"pixel_values": pixels}, None, 0, Loop(), "onepass", least)
        assert len(made["pixel_values"]) == 5 * (1 + least)
