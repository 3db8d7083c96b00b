"""Pyramid images: levels, labels, movement; that they please their objective, repeat, and serve any net and count."""

import copy
import math
from collections import Counter
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from vision_toys import CLASSES, cnn, images, mobilenet, regnet, resnet, vit
from zsaq import Pair
from zsaq.train.optim import NotFinite
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.images import images_of
from zsaq.vision.job import ImageJob
from zsaq.vision.losses.moments import missed, moments_of
from zsaq.vision.losses.priors import BatchNormStats, evened
from zsaq.vision.models import batch_norms, classifier
from zsaq.vision.papers.genie import prior
from zsaq.vision.sources import pyramid
from zsaq.vision.sources.pink import opponents
from zsaq.vision.sources.pixels import Pixels
from zsaq.vision.sources.pyramid import (
    Moved,
    Pyramid,
    balanced_labels,
    even_prior,
    falling,
    fitting_prior,
    pyramid_images,
)

SPEC = ImageSpec(CLASSES, 16)


@pytest.mark.parametrize(
    ("size", "sides"),
    [(1, [1]), (7, [7]), (28, [7, 14, 28]), (32, [4, 8, 16, 32]), (50, [6, 12, 25, 50]),
     (224, [7, 14, 28, 56, 112, 224])],
)  # fmt: skip
def test_resolutions_halve_down_to_four_pixels(size: int, sides: list[int]) -> None:
    source = Pyramid(ImageSpec(5, size, 1), torch.tensor([3, 1]))
    assert [each.shape[-1] for each in source.maps] == sides
    assert source()["pixel_values"].shape == (2, 1, size, size)
    assert source()["labels"].tolist() == [3, 1]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pixels_are_the_sum_of_stretched_maps_finer_ones_smaller(channels: int) -> None:
    source = Pyramid(ImageSpec(5, 8, channels), torch.zeros(2, dtype=torch.int64))
    coarse, fine = source.maps
    large, small = (4 / 3) ** 0.5, (2 / 3) ** 0.5  # 4^-.5 and 8^-.5 over the root of their mean square
    total = nn.functional.interpolate(large * coarse, scale_factor=2, mode="bilinear") + small * fine
    pixels = source()["pixel_values"]
    torch.testing.assert_close(pixels, (opponents(channels) @ total.flatten(2)).view_as(total))
    assert all(g.abs().max() > 0 for g in torch.autograd.grad(pixels.square().sum(), list(source.parameters())))


@pytest.mark.parametrize("sides", [[7], [4, 8, 16, 32], [6, 12, 25, 50], [7, 14, 28, 56, 112, 224]])
def test_weights_fall_with_the_root_of_the_side(sides: list[int]) -> None:
    weights = torch.tensor(falling(sides), dtype=torch.float64)
    torch.testing.assert_close(weights.square().mean(), torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(weights / weights[0], (sides[0] / torch.tensor(sides, dtype=torch.float64)).sqrt())


def test_images_begin_as_photographs_are_bright_together_and_smooth() -> None:
    spec = ImageSpec(5, 64)
    pixels = Pyramid(spec, torch.zeros(64, dtype=torch.int64))()["pixel_values"].detach()
    together = torch.corrcoef(pixels.transpose(0, 1).flatten(1))
    assert 0.85 < together[0, 1] < 0.97 and 0.7 < together[0, 2] < 0.95
    power = torch.fft.fft2(pixels).abs().square().mean((0, 1))[0]
    assert power[1] / power[8] > 8**2 and power[1] / power[16] > 16**2, "steeper than an equal variance per octave"
    assert 0.3 < pixels.var() < 1


def test_what_was_given_does_not_change_with_the_next_step() -> None:
    source = Pyramid(ImageSpec(5, 4), torch.zeros(2, dtype=torch.int64))
    pixels = source()["pixel_values"]
    before = pixels.clone()
    with torch.no_grad():
        source.maps[0].add_(1)
    assert torch.equal(pixels, before)


@pytest.mark.parametrize(("count", "classes"), [(1, 3), (3, 5), (5, 5), (17, 5), (64, 10)])
def test_labels_are_balanced(count: int, classes: int) -> None:
    labels = balanced_labels(count, ImageSpec(classes, 8))
    counted = Counter(labels.tolist())
    assert len(labels) == count and len(counted) == min(count, classes)
    assert max(counted.values()) - min(counted.values()) <= 1
    assert torch.equal(labels, balanced_labels(count, ImageSpec(classes, 8)))


def test_images_are_moved_together_and_the_source_keeps_them() -> None:
    source = Pixels(2, ImageSpec(5, 6, 1))
    still = source.pixels.detach()
    seen = [Moved(source, 1, seed)()["pixel_values"].detach() for seed in range(200)]
    rolled = [still.roll((i, j), (2, 3)) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    places = [way for each in rolled for way in (each, each.flip(3))]
    found = [next(i for i, place in enumerate(places) if torch.equal(pixels, place)) for pixels in seen]
    assert set(found) == set(range(18)) and torch.equal(source.pixels, still)


def test_they_please_their_objective_repeat_and_let_the_teacher_be(tmp_path: Path) -> None:
    teacher = classifier(cnn())
    state = copy.deepcopy(teacher.state_dict())
    options: dict[str, Any] = {"images": 16, "steps": 30}
    batch = pyramid_images(teacher, SPEC, **options, folder=tmp_path)
    again, other = pyramid_images(teacher, SPEC, **options), pyramid_images(teacher, SPEC, **options, seed=1)
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    assert not torch.equal(batch["pixel_values"], other["pixel_values"])
    assert {path.name for path in tmp_path.iterdir()} == {"images.png", "spectrum.png", "losses.png"}
    objective = prior(teacher)
    noise = {"pixel_values": torch.randn(16, 3, 16, 16)}
    after, start = (float(objective(Pair(teacher, teacher, b, objective.captures))) for b in (batch, noise))
    assert after < 0.3 * start
    with torch.no_grad():
        answers = teacher(pixel_values=batch["pixel_values"]).argmax(-1)
    assert (answers == batch["labels"]).float().mean() > 0.9
    assert all(torch.equal(value, state[name]) for name, value in teacher.state_dict().items())
    assert not any(m._forward_pre_hooks for m in teacher.modules()), "swinging has ended"


def scaled(scale: float) -> nn.Module:
    """The same net, to what numbers can tell: a norm takes away what the layer before it is scaled by."""
    teacher = classifier(cnn())
    norms = batch_norms(teacher)
    for number, conv in enumerate(m for m in teacher.modules() if isinstance(m, nn.Conv2d)):
        norm = norms[number]
        with torch.no_grad():
            conv.weight.mul_(scale)
            cast(Tensor, norm.running_mean).mul_(scale)
            cast(Tensor, norm.running_var).mul_(scale**2)
        norm.eps *= scale**2
    return teacher


def test_by_the_even_prior_the_scale_of_a_layers_answers_is_of_no_account() -> None:
    values, slopes, genies, misses = [], [], [], []
    for scale in (1.0, 0.03, 20.0):
        teacher = scaled(scale)
        objective, pixels = even_prior(teacher), images(8, 16).requires_grad_()
        value = objective(Pair(teacher, teacher, {"pixel_values": pixels}, objective.captures))
        values.append(value.detach())
        slopes.append(torch.autograd.grad(value, pixels)[0])
        plain = prior(teacher)
        genies.append(float(plain(Pair(teacher, teacher, {"pixel_values": pixels.detach()}, plain.captures))))
        misses.append(missed(teacher, pixels.detach()))
    assert 1.5 * genies[1] < genies[0] < 0.03 * genies[2], "Genie's own hangs on it"
    assert misses == pytest.approx([misses[0]] * 3, rel=1e-4)
    for other in (1, 2):
        torch.testing.assert_close(values[other], values[0], rtol=1e-3, atol=0)
        torch.testing.assert_close(slopes[other], slopes[0], rtol=1e-2, atol=1e-2 * float(slopes[0].abs().max()))


def test_what_is_missed_is_counted_in_deviations() -> None:
    teacher = classifier(nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 16 * 16, CLASSES)).eval())
    pixels, (norm,) = images(8, 16), batch_norms(teacher)
    (seen,) = moments_of(teacher, [{"pixel_values": pixels}])
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    mean.copy_(seen.mean)
    variance.copy_(seen.variance)
    assert missed(teacher, pixels) == pytest.approx(0, abs=1e-4)
    deviation = (variance + norm.eps).sqrt()
    mean.sub_(3 * deviation)
    assert missed(teacher, pixels) == pytest.approx(3, rel=1e-4)
    variance.copy_((deviation * 2).square() - norm.eps)
    assert missed(teacher, pixels) == pytest.approx((9 / 4 + math.log(2) ** 2) ** 0.5, rel=1e-4)
    assert torch.equal(mean, seen.mean - 3 * deviation), "it was looked at, in eval mode"


@pytest.mark.parametrize(("scale", "even"), [(1.0, False), (0.01, True)])
def test_the_teacher_chooses_the_prior_that_misses_less(
    scale: float, even: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = scaled(scale)
    state = copy.deepcopy(teacher.state_dict())
    chosen = fitting_prior(teacher, SPEC, 64, 20, 0.1, 0.1)
    assert all(torch.equal(value, state[name]) for name, value in teacher.state_dict().items())
    weights = [part.weights for _, part in chosen.parts if isinstance(part, BatchNormStats)]
    assert weights == [evened(teacher) if even else [1.0] * len(batch_norms(teacher))]
    told = capsys.readouterr().err
    assert ("layers count alike" in told) == even and (not even or "8 images miss 0." in told)


@pytest.mark.parametrize(("failing", "scale", "left"), [("even_prior", 0.01, prior), ("prior", 1.0, even_prior)])
def test_a_prior_that_is_not_finite_is_not_taken(
    failing: str, scale: float, left: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, teacher = getattr(pyramid, failing), scaled(scale)
    monkeypatch.setattr(pyramid, failing, lambda teacher: float("nan") * made(teacher))
    chosen = fitting_prior(teacher, SPEC, 8, 4, 0.1, 0.1)
    assert [weight for weight, _ in chosen.parts] == [weight for weight, _ in left(teacher).parts]
    with pytest.raises(NotFinite, match="Genie's prior tried"):  # both
        fitting_prior(teacher, SPEC, 8, 4, 0.1, float("nan"))


def test_a_layer_that_answers_nothing_has_a_weight() -> None:
    teacher = classifier(cnn())
    cast(Tensor, batch_norms(teacher)[0].running_var).zero_()
    assert all(0 < weight < float("inf") for weight in evened(teacher))
    assert pyramid_images(teacher, SPEC, images=4, steps=2)["pixel_values"].isfinite().all()


@pytest.mark.parametrize("make", [cnn, resnet, regnet, mobilenet])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_net_with_batch_norms_serves(make: Any, dtype: torch.dtype) -> None:
    batch = pyramid_images(make().to(dtype), ImageSpec(CLASSES, 32), images=3, steps=2)
    assert batch["pixel_values"].shape == (3, 3, 32, 32) and batch["pixel_values"].dtype == torch.float32
    assert batch["pixel_values"].isfinite().all() and not batch["pixel_values"].requires_grad


def test_groups_are_equal_in_size_and_have_seeds_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Pyramid] = []
    forward = Pyramid.forward

    def noted(self: Pyramid) -> Any:
        if all(self is not each for each in made):
            made.append(self)
        return forward(self)

    monkeypatch.setattr(Pyramid, "forward", noted)
    batch = pyramid_images(cnn(), SPEC, images=9, group=4, steps=1)
    assert [len(each.labels) for each in made] == [4, 4, 3, 3, 3], "two are tried, no more at once than a group"
    assert len(batch["labels"]) == 9
    one, two, three = batch["pixel_values"].split(3)
    assert not torch.equal(one, two) and not torch.equal(two, three)


def test_a_job_makes_them_by_name() -> None:
    job = ImageJob(cnn(), SPEC)
    batch: Any = images_of(job, "pyramid", 3, images=4, steps=2)
    alone = pyramid_images(cnn(), SPEC, images=4, steps=2, seed=3)
    assert all(torch.equal(batch[name], alone[name]) for name in alone)
    assert images_of(job, "pyramid", 3, images=4, steps=2) is batch


@pytest.mark.parametrize("wrong", [{"images": 0}, {"steps": 0}, {"group": 0}])
def test_what_cannot_be_is_said(wrong: dict[str, Any]) -> None:
    options: dict[str, Any] = {"images": 4, "steps": 1, **wrong}
    with pytest.raises(ValueError, match="is 0; give at least 1, as a whole number"):
        pyramid_images(cnn(), SPEC, **options)


def test_a_teacher_without_statistics_is_refused() -> None:
    with pytest.raises(ValueError, match="has no BatchNorm"):
        pyramid_images(vit(), SPEC, images=4, steps=1)
