import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import reference_vision_features as reference
from vision_toys import CLASSES, cnn, deit, images, mobilenet, resnet, run, swin, vit
from zsaq import KL, Pair, QuantConfig, quantize_model
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.losses.features import ActivationMap, ChannelAttention, closed_slopes, slopes
from zsaq.vision.losses.labels import EasyCE, PseudoCE, labelled, scheduled
from zsaq.vision.models import classifier, feature_places, last_feature_map
from zsaq.vision.spectrum import low_pass

TOYS = {"cnn": (cnn, 16), "resnet": (resnet, 32), "mobilenet": (mobilenet, 64), "vit": (vit, 16), "deit": (deit, 16),
        "swin": (swin, 32)}  # fmt: skip


def couple(kind: str) -> tuple[nn.Module, nn.Module, Tensor]:
    make, size = TOYS[kind]
    teacher = classifier(make()).requires_grad_(False)
    return teacher, quantize_model(teacher, QuantConfig.parse("w4a16")), images(5, size)


def layer(model: nn.Module, where) -> nn.Module:
    (place,) = [m for n, m in model.named_modules() if where(n, m)]
    return place


@pytest.mark.parametrize("kind", TOYS)
def test_activation_maps_are_grad_cam_of_the_label(kind: str) -> None:
    teacher, student, x = couple(kind)
    # A deep toy turns the other rounding of another batch size into 1e-3 of the maps.
    x = x[:1] if kind == "mobilenet" else x
    labels = torch.arange(len(x)) % CLASSES
    objective = ActivationMap(teacher, x)
    pair = Pair(teacher, student, {"pixel_values": x, "labels": labels}, objective.captures)
    where = last_feature_map(teacher, ImageSpec(CLASSES, x.shape[-1]))
    goal, here = (reference.grad_cam(m, layer(m, where), x, labels) for m in (teacher, student))
    known = sum(((p.detach() - q) ** 2).sum() for p, q in zip(goal, here, strict=True)) / len(x)
    assert isinstance(known, Tensor) and known.item() > 1e-6
    value = objective(pair)
    assert value.item() == pytest.approx(known.item(), rel=1e-3)
    # Weights are constants, so the plain twin's gradient of the student is the same.
    trained = [p for p in student.parameters() if p.requires_grad]
    gradients, wanted = (torch.autograd.grad(v, trained, allow_unused=True, retain_graph=True) for v in (value, known))
    assert any(g is not None and g.abs().max().item() > 0 for g in gradients)
    for a, b in zip(gradients, wanted, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert torch.allclose(a, b, rtol=1e-2, atol=1e-4 * float(b.abs().max()) + 1e-7)


@pytest.mark.parametrize(("kind", "closed"), [("cnn", True), ("resnet", True), ("mobilenet", True), ("vit", False)])
def test_the_closed_form_is_found_where_the_tail_has_one(kind: str, closed: bool) -> None:
    teacher, _, x = couple(kind)
    form = closed_slopes(teacher, last_feature_map(teacher, ImageSpec(CLASSES, x.shape[-1])), x)
    assert (form is not None) == closed


@pytest.mark.parametrize("kind", ["cnn", "resnet", "mobilenet"])
def test_the_closed_form_agrees_with_autograd(kind: str) -> None:
    teacher, student, x = couple(kind)
    objective, fresh = ActivationMap(teacher, x), 3 * images(7, x.shape[-1], seed=5)
    assert objective.closed is not None
    batch, target = {"pixel_values": fresh}, torch.randn(7, CLASSES)
    pair = Pair(teacher, student, batch, objective.captures)
    assert not pair.teacher.logits.requires_grad
    known = slopes(teacher, pair.teacher, objective.captures[0], batch, target)
    assert torch.allclose(
        objective.closed(pair.teacher, target), known, rtol=1e-4, atol=1e-6 + 1e-5 * float(known.abs().max())
    )


@pytest.mark.parametrize(("option", "closed"), [("affine", True), ("track_running_stats", False)])
def test_a_norm_without_gains_has_a_closed_form_and_one_without_statistics_none(option: str, closed: bool) -> None:
    net: Any = cnn()
    norm = nn.BatchNorm2d(16, **{option: False})
    norm.load_state_dict(net.layer2[0].bn2.state_dict(), strict=False)
    net.layer2[0].bn2 = norm.eval()
    teacher = classifier(net)
    assert (ActivationMap(teacher, images(5)).closed is not None) == closed


def test_a_tail_that_only_looks_alike_has_no_closed_form() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = cnn()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x).square()

    teacher = classifier(Scaled())
    assert closed_slopes(teacher, last_feature_map(teacher), images(3)) is None


def test_the_teacher_is_read_once_where_the_form_is_closed_and_runs_again_elsewhere() -> None:
    for kind, passes in (("cnn", 1), ("vit", 2)):
        teacher, student, x = couple(kind)
        objective, counted = ActivationMap(teacher, x), []
        handle = teacher.register_forward_hook(lambda *_, counted=counted: counted.append(1))
        objective(
            Pair(teacher, student, {"pixel_values": x, "labels": torch.zeros(5, dtype=torch.int64)}, objective.captures)
        )
        handle.remove()
        assert len(counted) == passes


def test_a_model_beside_itself_looks_at_the_same_spot_and_soft_labels_mix() -> None:
    teacher, student, x = couple("cnn")
    objective = ActivationMap(teacher, x)
    hard = torch.tensor([0, 1, 2, 3, 0])
    twin = classifier(cnn())
    assert objective(Pair(teacher, twin, {"pixel_values": x, "labels": hard}, objective.captures)).item() < 1e-9
    soft = nn.functional.one_hot(hard, CLASSES).float()
    values = [
        objective(Pair(teacher, student, {"pixel_values": x, "labels": y}, objective.captures)).item()
        for y in (hard, soft)
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_a_map_of_one_position_is_refused() -> None:
    teacher, _, _ = couple("mobilenet")
    convolution = [m for m in teacher.modules() if isinstance(m, nn.Conv2d)][-1]
    with pytest.raises(ValueError, match="one position"):
        ActivationMap(teacher, images(2, 32), lambda name, module: module is convolution)


def test_maps_need_labels() -> None:
    teacher, student, x = couple("cnn")
    objective = ActivationMap(teacher, x)
    with pytest.raises(ValueError, match="needs labels"):
        objective(Pair(teacher, student, {"pixel_values": x}, objective.captures))


@pytest.mark.parametrize("kind", ["cnn", "resnet", "vit"])
def test_channel_attention(kind: str) -> None:
    teacher, student, x = couple(kind)
    objective = ChannelAttention(feature_places(teacher))
    pair = Pair(teacher, student, {"pixel_values": x}, objective.captures)
    sides = (pair.teacher.seen[objective.captures[0]], pair.student.seen[objective.captures[1]])
    maps = [[v.detach() if v.ndim == 4 else v.detach().transpose(1, 2) for _, v in side] for side in sides]
    known = sum(reference.channel_attention(p, q) for p, q in zip(*maps, strict=True))
    assert known > 0
    assert objective(pair).item() == pytest.approx(known, rel=1e-4)


@pytest.mark.parametrize(("n", "d0"), [(16, 4.0), (15, 3.0), (32, 8.0)])
def test_low_pass_is_the_papers_filter(n: int, d0: float) -> None:
    x = torch.randn(2, 3, n, n)
    filtered = low_pass(x, d0 / n)
    for image, clear in zip(x.flatten(0, 1), filtered.flatten(0, 1), strict=True):
        assert np.allclose(clear.numpy(), reference.low_pass(image.numpy(), d0), atol=1e-5)
    assert torch.allclose(filtered.mean((2, 3)), x.mean((2, 3)), atol=1e-6)
    assert filtered.dtype == x.dtype and not filtered.is_complex()
    assert float(filtered.square().sum()) < float(x.square().sum())


def test_low_pass_keeps_flat_images_and_damps_a_wave_by_its_gain() -> None:
    flat = torch.full((1, 1, 8, 12), 0.7)
    assert torch.allclose(low_pass(flat, 0.1), flat, atol=1e-6)
    wave = torch.cos(2 * math.pi * torch.arange(16) * 3 / 16).expand(1, 1, 16, 16)
    gain = math.exp(-((3 / 16) ** 2) / (2 * 0.2**2))
    assert torch.allclose(low_pass(wave, 0.2), gain * wave, atol=1e-5)


@pytest.mark.parametrize("cutoff", [0.0, -0.1, 8.0, math.nan])
def test_low_pass_refuses(cutoff: float) -> None:
    with pytest.raises(ValueError, match="cycles per pixel"):
        low_pass(torch.zeros(1, 1, 8, 8), cutoff)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.8, 1.0])
def test_easy_labels(threshold: float) -> None:
    teacher, student, _ = couple("cnn")
    labels = torch.randint(CLASSES, (24,))
    pair = Pair(teacher, student, {"pixel_values": images(24), "labels": labels})
    known = reference.easy_ce(pair.teacher.logits, pair.student.logits.detach(), labels, threshold)
    assert EasyCE(threshold)(pair).item() == pytest.approx(known, rel=1e-4)
    assert (known > 0) == (threshold > 0)


@pytest.mark.parametrize(("threshold", "weight"), [(0.0, 0.3), (0.6, 0.5), (0.6, 0.0), (1.0, 0.5)])
def test_pseudo_labels(threshold: float, weight: float) -> None:
    teacher, student, _ = couple("cnn")
    pair = Pair(teacher, student, {"pixel_values": images(24)})
    known = reference.pseudo_ce(pair.teacher.logits, pair.student.logits.detach(), threshold, weight)
    assert known > 0
    assert PseudoCE(threshold, weight)(pair).item() == pytest.approx(known, rel=1e-4)


def test_the_stream_moves_the_threshold() -> None:
    labels = PseudoCE(0.5, 0.3)
    seen = [labels.threshold for _ in scheduled(({} for _ in range(6)), labels, 0.1, 4)]
    assert seen == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1, 0.1])


def test_labels_are_given_or_the_teachers() -> None:
    teacher, _, x = couple("cnn")
    given = {"pixel_values": x, "labels": torch.zeros(5, dtype=torch.int64)}
    assert labelled(teacher, given) is given
    labels = labelled(teacher, {"pixel_values": x})["labels"]
    assert torch.equal(labels, run(cnn(), x).argmax(-1)) and len(labels.unique()) > 1


def test_policies_refuse() -> None:
    with pytest.raises(ValueError, match="threshold"):
        EasyCE(1.5)
    with pytest.raises(ValueError, match="threshold"):
        PseudoCE(-0.1, 1.0)
    with pytest.raises(ValueError, match="weight"):
        PseudoCE(0.5, -1.0)
    teacher, student, x = couple("cnn")
    with pytest.raises(ValueError, match="needs labels"):
        (KL() + EasyCE(0.5))(Pair(teacher, student, {"pixel_values": x}))
