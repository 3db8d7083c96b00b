"""Priors against their formulas written out, and what each asks of an image."""

import math

import pytest
import torch
from torch import Tensor, nn

import reference_vision_priors as reference
from vision_toys import CLASSES, cnn, images, vit
from zsaq.train.pair import Pair, run_model
from zsaq.vision.heads import head
from zsaq.vision.losses.disagreement import AgreementCE, DisagreementCE, EntropyMargin
from zsaq.vision.losses.moments import Moments, inputs_of_norms, moments_of, stored
from zsaq.vision.losses.priors import BatchNormStats, MarginDistance, SoftInception, TeacherCE, layered
from zsaq.vision.losses.smoothness import ImageNorm, ImageStats, TextureEnergy, TotalVariation
from zsaq.vision.models import classifier

TEACHER = classifier(cnn()).eval().requires_grad_(False)
NORMS = [m for m in TEACHER.modules() if isinstance(m, nn.BatchNorm2d)]
STORED = [(kept.mean, kept.variance) for kept in map(stored, NORMS)]
CAPTURE = inputs_of_norms()
LABELS = torch.arange(6) % CLASSES


def pair(pixels: Tensor, objective, labels: Tensor = LABELS, student: nn.Module = TEACHER) -> Pair:
    return Pair(TEACHER, student, {"pixel_values": pixels, "labels": labels[: len(pixels)]}, objective.captures)


def ask(objective, pixels: Tensor | None = None, **options) -> Tensor:
    return objective(pair(images(6) if pixels is None else pixels, objective, **options))


def seen(pixels: Tensor) -> list[Tensor]:
    return [x for _, x in run_model(TEACHER, {"pixel_values": pixels}, (CAPTURE,)).seen[CAPTURE]]


class Fixed(nn.Module):
    """Answers the same logits to anything, and lets no gradient by."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.logits


def test_statistics_of_a_batch_agree_with_the_reference() -> None:
    inputs = seen(images(6))
    assert float(ask(BatchNormStats(TEACHER))) == pytest.approx(reference.batch_norm_stats(inputs, STORED), rel=1e-4)
    got = ask(BatchNormStats(TEACHER, spread="deviation"))
    assert float(got) == pytest.approx(reference.batch_norm_stats(inputs, STORED, deviation=True), rel=1e-4)


@pytest.mark.parametrize("enhance", [False, True])
@pytest.mark.parametrize("slack", [(0.0, 0.0), (0.3, 0.2)])
def test_statistics_of_instances_agree_with_the_reference(slack: tuple[float, float], enhance: bool) -> None:
    got = ask(BatchNormStats(TEACHER, "instance", slack=[slack] * len(NORMS), enhance=enhance))
    wanted = reference.instance_norm_stats(seen(images(6)), STORED, slack, enhance)
    assert float(got) == pytest.approx(wanted, rel=1e-4)


def test_weights_choose_layers_and_targets_replace_what_is_stored() -> None:
    inputs, depth = seen(images(6)), len(NORMS)
    each = [reference.batch_norm_stats([x], [s]) for x, s in zip(inputs, STORED, strict=True)]
    weights = layered(TEACHER, 0.2, 1.1)
    switch = (depth + 2) // 2 - 2
    assert weights == [0.2] * switch + [1.1] * (depth - switch) and 0 < switch < depth
    got = ask(BatchNormStats(TEACHER, weights=weights))
    assert float(got) == pytest.approx(sum(w * e for w, e in zip(weights, each, strict=True)) / depth, rel=1e-4)
    own = moments_of(TEACHER, [{"pixel_values": images(6)}])
    assert float(ask(BatchNormStats(TEACHER, targets=own))) == pytest.approx(0, abs=1e-9)


def test_measured_statistics_of_batches_are_those_of_all_their_images() -> None:
    pixels = images(8)
    parts = moments_of(TEACHER, [{"pixel_values": pixels[:4]}, {"pixel_values": pixels[4:]}])
    for whole, part in zip(moments_of(TEACHER, [{"pixel_values": pixels}]), parts, strict=True):
        torch.testing.assert_close(whole.mean, part.mean)
        torch.testing.assert_close(whole.variance, part.variance)
    with pytest.raises(ValueError, match="no batch to measure"):
        moments_of(TEACHER, [])


def test_norms_that_no_image_reaches_are_left_out_or_told() -> None:
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    teacher = classifier(body).eval()
    alone = BatchNormStats(teacher)
    whole = float(alone(Pair(teacher, teacher, {"pixel_values": images(6)}, alone.captures)))
    body.forward = lambda x: nn.Sequential.forward(body[:4], x)  # type: ignore[method-assign]
    body.add_module("unused", nn.BatchNorm2d(4))
    both = BatchNormStats(teacher)
    assert float(both(Pair(teacher, teacher, {"pixel_values": images(6)}, both.captures))) == whole / 2
    _, kept = moments_of(teacher, [{"pixel_values": images(6)}])
    assert torch.equal(kept.variance, torch.ones(4))
    none = classifier(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())).eval()
    none.unused = nn.BatchNorm2d(4)
    lone = BatchNormStats(none)
    with pytest.raises(ValueError, match=r"^unused: no image reaches these BatchNorms.*as onepass-pink$"):
        lone(Pair(none, none, {"pixel_values": images(6)}, lone.captures))
    with pytest.raises(ValueError, match=r"^unused: no image reaches these BatchNorms.*as onepass-pink$"):
        moments_of(none, [{"pixel_values": images(6)}])


def test_gradients_of_the_statistics_reach_the_images() -> None:
    for objective in (BatchNormStats(TEACHER), BatchNormStats(TEACHER, "instance")):
        pixels = images(6).requires_grad_()
        (grad,) = torch.autograd.grad(ask(objective, pixels), pixels)
        assert grad.isfinite().all() and grad.abs().sum() > 0
    # A map of one pixel has no deviation, and a constant one a finite slope.
    flat = torch.zeros(2, 3, 16, 16, requires_grad=True)
    (grad,) = torch.autograd.grad(ask(BatchNormStats(TEACHER, "instance"), flat), flat)
    assert grad.isfinite().all()
    assert ask(BatchNormStats(TEACHER, "instance"), torch.ones(2, 3, 1, 1)).isfinite()


def test_statistics_refuse_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="BatchNorm"):
        BatchNormStats(vit())
    with pytest.raises(ValueError, match="weights has 1 entries"):
        BatchNormStats(TEACHER, weights=[1.0])
    with pytest.raises(ValueError, match="targets has 1 entries"):
        BatchNormStats(TEACHER, targets=[Moments(torch.zeros(1), torch.ones(1))])
    with pytest.raises(ValueError, match="form is 'whole'"):
        BatchNormStats(TEACHER, "whole")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one by one"):
        BatchNormStats(TEACHER, enhance=True)


def test_cross_entropies_agree_with_the_reference() -> None:
    logits = run_model(TEACHER, {"pixel_values": images(6)}).logits
    for focus in (0.0, 0.5, 2.0):
        assert float(ask(TeacherCE(focus))) == pytest.approx(reference.focal_ce(logits, LABELS, focus), rel=1e-4)
    soft = torch.rand(6, CLASSES).softmax(1)
    assert float(ask(TeacherCE(), labels=soft)) == pytest.approx(reference.soft_ce(logits, soft), rel=1e-4)
    with pytest.raises(ValueError, match="these are soft"):
        ask(TeacherCE(2.0), labels=soft)
    with pytest.raises(ValueError, match="focus is -1"):
        TeacherCE(-1)
    with pytest.raises(ValueError, match="needs labels"):
        TeacherCE()(Pair(TEACHER, TEACHER, {"pixel_values": images(2)}))


def test_a_sample_beyond_doubt_has_a_finite_slope() -> None:
    sure = Fixed(torch.tensor([[200.0, 0.0], [0.0, 1.0]]))
    batch = {"pixel_values": torch.zeros(2, 3, 4, 4, requires_grad=True), "labels": torch.tensor([0, 0])}
    TeacherCE(0.5)(Pair(sure, sure, batch)).backward()
    assert sure.logits.grad is not None and sure.logits.grad.isfinite().all() and sure.logits.grad[1, 0] < 0


def test_soft_inception_asks_for_certainty_in_about_half_of_the_batches() -> None:
    chance = run_model(TEACHER, {"pixel_values": images(6)}).logits.softmax(1).gather(1, LABELS[:, None])
    sure = float((chance - 1).square().mean())
    assert float(ask(SoftInception(1.0))) == pytest.approx(sure, rel=1e-5)
    objective = SoftInception(0.2, seed=1)
    values = [float(ask(objective)) for _ in range(20)]
    assert 3 < sum(v == pytest.approx(sure, rel=1e-5) for v in values) < 17
    again = SoftInception(0.2, seed=1)
    assert [float(ask(again)) for _ in range(3)] == values[:3]


def test_margins_keep_images_near_their_class_but_not_on_it() -> None:
    layer = head(TEACHER)
    objective = MarginDistance(lambda _, module: module is layer, 0.05, 0.1)
    assert float(ask(objective)) == 0
    batch = {"pixel_values": images(6, seed=1), "labels": torch.tensor([0, 0, 1, 1, 1, 1])}
    objective.remember(TEACHER, batch)
    capture = objective.captures[0]
    old, new = (
        run_model(TEACHER, {"pixel_values": p}, (capture,)).seen[capture][0][1]
        for p in (batch["pixel_values"], images(6))
    )
    wanted = []
    for feature, label in zip(new, LABELS.tolist(), strict=True):
        if label < 2:
            centre = old[batch["labels"] == label].mean(0)
            d = 1 - float(feature @ centre / feature.norm() / centre.norm())
            wanted.append(max(0.05 - d, 0) + max(d - 0.1, 0))
    assert float(ask(objective)) == pytest.approx(sum(wanted) / len(wanted), rel=1e-3, abs=1e-6)
    assert sum(wanted) > 0
    with pytest.raises(ValueError, match="cosine distances"):
        MarginDistance(nn.Linear, 0.5, 0.1)


def test_disagreement_agrees_with_the_reference_and_flows_through_both_models() -> None:
    student = Fixed(torch.randn(6, CLASSES, generator=torch.Generator().manual_seed(1)))
    logits, other = run_model(TEACHER, {"pixel_values": images(6)}).logits, student.logits.detach()
    got = ask(EntropyMargin(0.3, 0.8), student=student).detach()
    assert float(got) == pytest.approx(reference.entropy_margin(logits, other, 0.3, 0.8), rel=1e-4) and float(got) > 0
    for objective, both in ((DisagreementCE(), logits - other), (AgreementCE(), logits + other)):
        assert float(ask(objective, student=student).detach()) == pytest.approx(
            reference.focal_ce(both, LABELS, 0), rel=1e-4
        )
    pixels = images(6).requires_grad_()
    grads = torch.autograd.grad(ask(EntropyMargin(0.3, 0.8), pixels, student=student), [pixels, student.logits])
    assert all(g.isfinite().all() and g.abs().sum() > 0 for g in grads)
    with pytest.raises(ValueError, match="0 <= lower <= upper <= 1"):
        EntropyMargin(0.5, 0.4)


def test_what_is_asked_of_images_themselves() -> None:
    pixels = images(6)
    mean, spread = pixels.mean((2, 3)), (pixels.var((2, 3)) + 1e-6).sqrt()
    assert float(ask(ImageStats())) == pytest.approx(float((mean**2 + (spread - 1) ** 2).sum() / 6), rel=1e-4)
    with pytest.raises(ValueError, match=r"of 1 pixel, which has no deviation .* larger size$"):
        ask(ImageStats(), torch.ones(6, 3, 1, 1))
    lengths = [math.sqrt(sum(v * v for v in image.flatten().tolist())) for image in pixels]
    assert float(ask(ImageNorm())) == pytest.approx(sum(lengths) / 6, rel=1e-4)
    total = 0.0
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        squares = 0.0
        for i in range(16 - down):
            for j in range(max(0, -right), 16 - max(0, right)):
                squares += float((pixels[..., i + down, j + right] - pixels[..., i, j]).square().sum())
        total += math.sqrt(squares)
    assert float(ask(TotalVariation())) == pytest.approx(total, rel=1e-4)


def test_texture_shares_sum_to_one_and_stripes_are_one_texture() -> None:
    objective = TextureEnergy(0.3)
    shares = objective.shares(images(4))
    torch.testing.assert_close(shares.sum(1), torch.ones(4))
    assert shares.shape == (4, 9) and (shares >= 0).all()
    stripes = torch.tensor([1.0, -1.0]).repeat(8).expand(1, 3, 16, 16)
    # Level across, ripple along: the pair (level, ripple), third after (level, edge) and (level, spot).
    assert int(objective.shares(stripes).argmax()) == 2
    assert float(ask(objective, stripes)) > float(ask(objective))
    torch.testing.assert_close(objective.shares(stripes), objective.shares(stripes.transpose(2, 3)))
    with pytest.raises(ValueError, match="ceiling is 0"):
        TextureEnergy(0)
