"""What is read from the structure of a classifier, for every architecture that is named."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import vision_toys as toys
from zsaq import QuantConfig, quantize_model
from zsaq.train.pair import Capture, Pair
from zsaq.vision.classifier import Classifier
from zsaq.vision.heads import head
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.models import (
    attentions,
    batch_norms,
    blocks,
    classifier,
    feature_places,
    last_feature_map,
    layers,
    spec_of,
)

TOYS: dict[str, Callable[[], Any]] = {
    "cnn": toys.cnn,
    "resnet": toys.resnet,
    "bottleneck": lambda: toys.resnet(layer_type="bottleneck"),
    "regnet": toys.regnet,
    "mobilenet": toys.mobilenet,
    "convnext": toys.convnext,
    "vit": toys.vit,
    "deit": toys.deit,
    "swin": toys.swin,
}
SIZE = {"vit": 16, "deit": 16}
LAYERS = {  # layers before the blocks, blocks, layers between them, layers behind them
    "cnn": (1, 2, 0, 1), "resnet": (1, 2, 0, 1), "bottleneck": (1, 2, 0, 1), "regnet": (1, 2, 0, 1),
    "mobilenet": (3, 16, 0, 2), "convnext": (1, 2, 1, 1), "vit": (1, 2, 0, 1), "deit": (1, 2, 0, 1),
    "swin": (1, 4, 1, 1),
}  # fmt: skip


@pytest.fixture(scope="module")
def teachers() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {name: classifier(make()) for name, make in TOYS.items()}


def pixels(name: str, n: int = 2) -> dict[str, torch.Tensor]:
    return {"pixel_values": toys.images(n, SIZE.get(name, 32))}


@pytest.mark.parametrize("name", TOYS)
def test_a_teacher_answers_pixel_values_and_differs_between_images(name: str, teachers: dict[str, nn.Module]) -> None:
    logits = Pair(teachers[name], teachers[name], pixels(name, 8)).teacher.logits
    assert logits.shape == (8, toys.CLASSES)
    assert len(set(logits.argmax(1).tolist())) > 1 and logits.std(0).min() > 0.1


def test_only_a_plain_module_is_wrapped_and_only_once() -> None:
    plain, known = toys.cnn(), toys.resnet()
    wrapped = classifier(plain)
    assert isinstance(wrapped, Classifier) and wrapped.module is plain
    assert classifier(wrapped) is wrapped and classifier(known) is known


@pytest.mark.parametrize("name", TOYS)
def test_blocks_hold_every_layer_once_in_order(name: str, teachers: dict[str, nn.Module]) -> None:
    model = teachers[name]
    named = blocks(model)
    assert all(model.get_submodule(where) is block for where, block in named)
    held = [m for _, block in named for m in block.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert held == [m for _, m in layers(model)]
    single = [isinstance(block, nn.Conv2d | nn.Linear) for _, block in named]
    before, residual, between, behind = LAYERS[name]
    assert single[:before] == [True] * before and not single[before] and single[-behind:] == [True] * behind
    assert single.count(False) == residual and single.count(True) == before + between + behind


@pytest.mark.parametrize("name", TOYS)
def test_blocks_are_executed_in_their_order(name: str, teachers: dict[str, nn.Module]) -> None:
    model, seen = teachers[name], []
    handles = [u.register_forward_hook(lambda m, *_: seen.append(m)) for _, u in blocks(model)]
    with torch.no_grad():
        model(**pixels(name))
    for handle in handles:
        handle.remove()
    assert seen == [block for _, block in blocks(model)]


@pytest.mark.parametrize("name", TOYS)
def test_a_student_is_read_like_its_teacher(name: str, teachers: dict[str, nn.Module]) -> None:
    teacher = teachers[name]
    student = quantize_model(teacher, QuantConfig.parse("w4a16"))
    assert [n for n, _ in blocks(student)] == [n for n, _ in blocks(teacher)]
    assert feature_places(student) == feature_places(teacher)
    captures = tuple(Capture(side, feature_places(teacher)) for side in ("teacher", "student"))
    pair = Pair(teacher, student, pixels(name), captures)
    seen = pair.teacher.seen[captures[0]], pair.student.seen[captures[1]]
    assert [x.shape for _, x in seen[0]] == [x.shape for _, x in seen[1]] != []


def test_the_branch_ends_before_the_shortcut_is_added(teachers: dict[str, nn.Module]) -> None:
    for name in ("cnn", "resnet", "bottleneck", "regnet", "mobilenet"):
        model, where = teachers[name], feature_places(teachers[name])
        for (_, block), at in zip([u for u in blocks(model) if len(list(u[1].children()))], where.names, strict=True):
            capture = Capture("teacher", lambda n, m, block=block: m is block)
            branch = Capture("teacher", lambda n, m, at=at: n == at)
            seen = Pair(model, model, pixels(name), (capture, branch)).teacher.seen
            assert isinstance(model.get_submodule(at), nn.BatchNorm2d)
            assert seen[branch][0][1].shape == seen[capture][0][1].shape


class Downsampled(nn.Module):
    """The usual plain block: its shortcut stands behind its branch."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(into, out, 3, 2, 1), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1), nn.BatchNorm2d(out)
        self.downsample = nn.Sequential(nn.Conv2d(into, out, 1, 2), nn.BatchNorm2d(out))
        gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(out, 2, 1), nn.ReLU(), nn.Conv2d(2, out, 1))
        self.gate = gate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y * self.gate(y).sigmoid() + self.downsample(x)).relu()


def test_a_shortcut_behind_its_branch_and_a_gate_are_not_taken_for_it() -> None:
    net = nn.Sequential(Downsampled(3, 8), Downsampled(8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    assert [name for name, _ in blocks(net)] == ["0", "1", "4"]
    assert feature_places(net).names == ("0.bn2", "1.bn2")
    assert last_feature_map(net, ImageSpec(4, 16)).names == ("1.conv2",)


def test_a_net_without_blocks_gives_single_layers_and_its_norms() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 14), nn.Flatten(), nn.Linear(4, 2))
    assert [name for name, _ in blocks(net)] == ["0", "2", "4"]
    assert feature_places(net).names == ("1",)
    assert last_feature_map(net, ImageSpec(2, 16)).names == ("0",), "a map of one pixel is no map"


@pytest.mark.parametrize("name", TOYS)
def test_the_last_feature_map_has_gradients_everywhere(name: str, teachers: dict[str, nn.Module]) -> None:
    model = teachers[name]
    capture = Capture("teacher", last_feature_map(model, ImageSpec(4, SIZE.get(name, 32))))
    batch = {"pixel_values": pixels(name)["pixel_values"].requires_grad_()}
    out = Pair(model, model, batch, (capture,)).teacher
    ((_, seen),) = out.seen[capture]
    (gradient,) = torch.autograd.grad(out.logits[:, 0].sum(), seen)
    # Shifted by ReLU's zeros, a channel may be dead; a place of the map, over all channels, must not be.
    at_place = gradient.abs().sum(1) if seen.ndim == 4 else gradient.abs().sum(-1)
    assert at_place[0].numel() > 1 and (at_place > 0).float().mean() > 0.7


@pytest.mark.parametrize("name", ["vit", "deit", "swin"])
def test_attention_contexts_are_seen_before_their_projection(name: str, teachers: dict[str, nn.Module]) -> None:
    model = teachers[name]
    heads = attentions(model)
    capture = Capture("teacher", lambda _, module: module in heads, "input")
    seen = Pair(model, model, pixels(name), (capture,)).teacher.seen[capture]
    assert len(seen) == len(heads) == len([u for u in blocks(model) if list(u[1].children())])
    for module, context in seen:
        assert context.ndim == 3 and context.shape[-1] % heads[module] == 0
    assert {context.shape[1] for _, context in seen} == {{"vit": 17, "deit": 18, "swin": 16}[name]}


@pytest.mark.parametrize("name", TOYS)
def test_the_head_writes_the_logits(name: str, teachers: dict[str, nn.Module]) -> None:
    model = teachers[name]
    capture = Capture("teacher", lambda _, module: module is head(model))
    out = Pair(model, model, pixels(name), (capture,)).teacher
    assert torch.equal(out.seen[capture][0][1], out.logits)


def test_norms_are_all_found_or_their_absence_is_explained(teachers: dict[str, nn.Module]) -> None:
    assert len(batch_norms(teachers["cnn"])) == 5
    for name in ("convnext", "vit", "swin"):
        with pytest.raises(ValueError, match=r"ForImageClassification has no BatchNorm.*take a ResNet"):
            batch_norms(teachers[name])


def test_specs_come_from_configurations(teachers: dict[str, nn.Module]) -> None:
    assert spec_of(teachers["vit"]) == ImageSpec(4, 16)
    assert spec_of(teachers["resnet"], 32) == ImageSpec(4, 32)
    with pytest.raises(ValueError, match="names no image size; give spec=SIDE"):
        spec_of(teachers["resnet"])
    for size, words in ((None, ""), (16, ", and spec is 16"), ((4, 16, 3), r", and spec is \(4, 16, 3\)")):
        with pytest.raises(ValueError, match=rf"Cnn has no configuration that tells its images{words}; give ImageSpec"):
            spec_of(teachers["cnn"], size)  # type: ignore[arg-type]
    teachers["swin"].config.image_size = (32, 16)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="only square"):
        spec_of(teachers["swin"])
    for wrong in (0, -1, 2.5, True, "4"):
        with pytest.raises(ValueError, match="give an integer of at least 1"):
            ImageSpec(4, wrong)  # type: ignore[arg-type]


def test_what_is_missing_is_said(teachers: dict[str, nn.Module]) -> None:
    mlp = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))
    with pytest.raises(ValueError, match="no attention that is known"):
        attentions(teachers["cnn"])
    with pytest.raises(ValueError, match="neither residual blocks nor BatchNorm"):
        feature_places(mlp)
    for spec in (None, ImageSpec(4, 16)):
        with pytest.raises(ValueError, match="no convolution with a map"):
            last_feature_map(mlp, spec)
    with pytest.raises(ValueError, match="0 linear heads"):
        head(nn.Sequential(nn.Conv2d(3, 4, 16), nn.Flatten()))
    with pytest.raises(ValueError, match="holds no convolution or linear layer"):
        blocks(nn.Sequential(nn.Flatten()))
