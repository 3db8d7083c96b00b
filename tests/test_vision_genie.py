import gc
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest
import torch
from torch import nn

from vision_toys import cnn, images, resnet
from zsaq import Pair
from zsaq.quant.layers import quant_layers
from zsaq.quant.quantizer import Quantizer
from zsaq.quant.ranges import MSEOptimal
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.models import batch_norms, classifier
from zsaq.vision.papers.genie import genie, genie_images, genie_sources, prior, sizes
from zsaq.vision.presets import brecq, uniform
from zsaq.vision.sources.swing import Latents

SPEC = ImageSpec(4, 16)


def test_the_prior_is_the_formula() -> None:
    """sum_l mean_c (m - mu)^2 + mean_c (s - sigma)^2, and the image's own with 0 and 1."""
    teacher, pixels = classifier(cnn()), images(6)
    seen: list[tuple[Any, torch.Tensor]] = []
    handles = [n.register_forward_pre_hook(lambda m, args: seen.append((m, args[0]))) for n in batch_norms(teacher)]
    with torch.no_grad():
        teacher(pixel_values=pixels)
    for handle in handles:
        handle.remove()
    expected = pixels.mean((2, 3)).square().sum(1).mean() + (pixels.std((2, 3)) - 1).square().sum(1).mean()
    for norm, x in seen:
        assert norm.running_mean is not None and norm.running_var is not None
        expected += (x.mean((0, 2, 3)) - norm.running_mean).square().mean()
        expected += (x.std((0, 2, 3)) - norm.running_var.sqrt()).square().mean()
    objective = prior(teacher)
    assert float(objective(Pair(teacher, teacher, {"pixel_values": pixels}, objective.captures))) == pytest.approx(
        float(expected), rel=1e-2
    )


def test_images_fall_in_loss_come_in_groups_and_repeat() -> None:
    teacher = cnn()
    pixels = genie_images(teacher, SPEC, images=10, group=4, steps=2)["pixel_values"]
    assert pixels.shape == (10, 3, 16, 16) and pixels.device.type == "cpu" and not pixels.requires_grad
    assert torch.equal(pixels, genie_images(teacher, SPEC, images=10, group=4, steps=2)["pixel_values"])
    assert not torch.equal(pixels[:4], pixels[4:8])
    model = classifier(teacher)
    objective = prior(model)
    losses = [
        float(
            objective(Pair(model, model, genie_images(teacher, SPEC, images=8, group=8, steps=n), objective.captures))
        )
        for n in (1, 25)
    ]
    assert losses[1] < 0.7 * losses[0]
    assert not any(m._forward_pre_hooks for m in model.modules()), "swinging has ended"


def test_it_makes_an_ordinary_student() -> None:
    teacher = resnet()
    config = brecq("w4a4", teacher)
    spec = ImageSpec(4, 32)
    batch = genie_images(teacher, spec, images=8, group=4, steps=2)
    student = genie(teacher, config, spec, batch, steps=2, batch_size=4)
    quantizers = [layer.weight_quantizer for _, layer in quant_layers(student)]
    assert all(type(q) is Quantizer and isinstance(q.ranges, MSEOptimal) for q in quantizers)
    with torch.no_grad():
        assert student(pixel_values=images(2, 32)).logits.isfinite().all()


def test_it_takes_a_plain_net_and_ranges_behind_activations() -> None:
    teacher = cnn()
    student = genie(teacher, uniform("w3a3", teacher), SPEC, {"pixel_values": images(6)}, steps=2, batch_size=4)
    with torch.no_grad():
        assert student(pixel_values=images(2)).isfinite().all()


def test_at_few_steps_more_codes_leave_the_nearest_than_at_the_published_rate() -> None:
    teacher, batch = classifier(cnn()), {"pixel_values": images(8)}
    config = uniform("w3a3", teacher)

    def codes(student: nn.Module) -> torch.Tensor:
        return torch.cat([q.weight_quantizer.codes(q.weight)[0].flatten() for _, q in quant_layers(student)])

    start = codes(genie(teacher, config, SPEC, batch, steps=1, batch_size=4, lr_bits=0.0))
    ours, published, same = (
        codes(genie(teacher, config, SPEC, batch, steps=12, batch_size=4, lr_bits=lr)) for lr in (None, 1e-3, 3e-2)
    )
    assert torch.equal(ours, same)
    assert (ours != start).sum() > 2 * (published != start).sum() > 0


def test_groups_share_no_seed_with_those_of_another_run() -> None:
    few: dict[str, Any] = {"images": 8, "group": 4, "steps": 1}
    one, two = (genie_sources(cnn(), SPEC, **few, seed=seed)[0] for seed in (0, 1))
    assert not torch.equal(one[1].latents, two[0].latents) and not torch.equal(one[0].latents, one[1].latents)
    assert torch.equal(one[1].latents, genie_sources(cnn(), SPEC, **few)[0][1].latents)


def test_images_hold_one_decoder_at_a_time_and_sources_all(monkeypatch: pytest.MonkeyPatch) -> None:
    alive, most = WeakSet[Latents](), 0
    start = Latents.__init__

    def counted(self: Latents, *args: Any, **options: Any) -> None:
        nonlocal most
        start(self, *args, **options)
        alive.add(self)
        gc.collect()
        most = max(most, len(alive))

    monkeypatch.setattr(Latents, "__init__", counted)
    few: dict[str, Any] = {"images": 8, "group": 2, "steps": 2}
    batch = genie_images(cnn(), SPEC, **few)
    assert most == 1
    groups, same = genie_sources(cnn(), SPEC, **few)
    assert len(groups) == 4 and torch.equal(batch["pixel_values"], same["pixel_values"])


def test_one_image_that_is_left_over_goes_to_the_last_group() -> None:
    assert sizes(9, 4) == [4, 5] and sizes(3, 2) == [3] and sizes(8, 4) == [4, 4] and sizes(10, 4) == [4, 4, 2]
    assert genie_images(cnn(), SPEC, images=5, group=2, steps=1)["pixel_values"].shape[0] == 5


def test_what_cannot_be_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="images is 1; give at least 2, as a whole number"):
        genie_images(cnn(), SPEC, images=1, group=4)
    with pytest.raises(ValueError, match="steps is 0"):
        genie_images(cnn(), SPEC, images=4, group=4, steps=0)
    with pytest.raises(ValueError, match="BatchNorm"):
        genie_images(nn.Sequential(nn.Flatten(), nn.Linear(768, 4)), SPEC, images=4, group=4, steps=1)
