"""Gradients of single images at a layer, their cosines, and the objectives on them."""

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_reconstruction import cosines, gradient, gram
from toys_matching import SPEC, models, pair
from vision_toys import cnn, images, vit
from zsaq import Grid, QuantConfig, calibrate, quantize_model
from zsaq.quant.layers import QuantLayer
from zsaq.vision.classifier import classifier
from zsaq.vision.losses.matching import Directions, Diversity, GradientMatching, LayerGradient
from zsaq.vision.models import At, last_feature_map
from zsaq.vision.papers.sadag import at_head
from zsaq.vision.sources.swing import Latents


def named(model: nn.Module, layer: nn.Module) -> At:
    return At(tuple(name for name, module in model.named_modules() if module is layer))


def by_autograd(teacher: nn.Module, student: nn.Module, layer: At, pixels: Tensor) -> Tensor:
    """Cosines [B, B] of the gradients of 1/2 ||f_P - f_Q||^2 at one layer's weight, sample by sample."""
    own, theirs = student.get_submodule(layer.names[0]), teacher.get_submodule(layer.names[0])
    assert isinstance(own, QuantLayer)
    weight = own.dequantized().view_as(own.weight)
    gradients = []
    for x in pixels.split(1):
        seen: list[Any] = []
        handles = [
            own.register_forward_pre_hook(lambda m, args: seen.append(args[0])),
            theirs.register_forward_hook(lambda m, args, out: seen.append(out)),
        ]
        student(pixel_values=x)
        teacher(pixel_values=x)
        for handle in handles:
            handle.remove()
        gradients.append(gradient(own, weight, seen[0], seen[1]))
    return cosines(gradients, gradients)


def test_outer_products_are_the_gradients_of_the_head() -> None:
    teacher, student = models(cnn().double())
    layer, pixels = at_head(teacher), images(5).double()
    here = layer(pair(teacher, student, layer, pixels))
    wanted = by_autograd(teacher, student, At(("module.linear",)), pixels)
    # Logits and features are read in float32.
    assert torch.allclose(here.with_all(here).double(), wanted, atol=1e-5)
    h, e = torch.randn(4, 9, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    exact = Directions(F.normalize(h, dim=-1), F.normalize(e, dim=-1))
    outer = [-torch.outer(a, b).flatten() for a, b in zip(e, h, strict=True)]
    assert torch.allclose(exact.with_all(exact), cosines(outer, outer), atol=1e-10)
    assert torch.allclose(exact.with_each(exact), torch.ones(4, dtype=torch.float64), atol=1e-10)


@pytest.mark.parametrize("name", ["module.layer2.0.conv2", "module.conv1", "module.linear"])
def test_inner_layers_of_a_cnn_agree_with_autograd(name: str) -> None:
    teacher, student = models(cnn())
    layer, pixels = LayerGradient(At((name,)), sketch=None), images(4)
    here = layer(pair(teacher, student, layer, pixels))
    assert torch.allclose(here.with_all(here), by_autograd(teacher, student, At((name,)), pixels), atol=1e-4)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2, "padding": 1},
        {"kernel_size": 4, "padding": "same", "dilation": (1, 3)},
        {"padding": "valid"},
        *({"padding": 1, "padding_mode": mode} for mode in ("reflect", "replicate", "circular")),
    ],
)
def test_a_grouped_convolution_of_any_padding_agrees_with_autograd(options: dict[str, Any]) -> None:
    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            given: dict[str, Any] = {"kernel_size": 3, "groups": 3} | options
            self.conv, self.head = nn.Conv2d(3, 6, **given), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(x).mean((2, 3)))

    teacher, student = models(Grouped())
    where, pixels = At(("module.conv",)), images(4)
    layer = LayerGradient(where, sketch=None)
    here = layer(pair(teacher, student, layer, pixels))
    assert torch.allclose(here.with_all(here), by_autograd(teacher, student, where, pixels), atol=1e-4)


def test_a_transformer_s_last_block_is_matched_at_its_own_error() -> None:
    """The block adds its last layer's output to the residual stream: its error is that of the layer's gradient."""
    teacher, student = models(vit())
    block = teacher.vit.layers[-1] if "layers" in dict(teacher.vit.named_children()) else teacher.vit.encoder.layer[-1]
    last = [module for module in block.modules() if isinstance(module, nn.Linear)][-1]
    layer = LayerGradient(named(teacher, last), named(teacher, block), sketch=None)
    both = pair(teacher, student, layer, images(4))
    here = layer(both)
    e = both.teacher.seen[layer.captures[0]][0][1] - both.student.seen[layer.captures[1]][0][1]
    h = both.student.seen[layer.captures[2]][0][1]
    inner = torch.stack([torch.stack([gram(e[i], h[i], e[j], h[j]) for j in range(4)]) for i in range(4)])
    size = inner.diag().sqrt()
    assert torch.allclose(here.with_all(here), inner / size[:, None] / size, atol=1e-4)


def test_sketches_keep_cosines() -> None:
    teacher, student = models(vit())
    last = [module for module in teacher.vit.modules() if isinstance(module, nn.Linear)][-1]
    exact, short = (LayerGradient(named(teacher, last), sketch=n) for n in (None, 24))
    pixels = images(12)
    a, b = (layer(pair(teacher, student, layer, pixels)) for layer in (exact, short))
    assert b.h.shape[1] <= 24 * 24
    assert (a.with_all(a) - b.with_all(b)).abs().mean() < 0.12
    assert torch.equal(b.h, short(pair(teacher, student, short, pixels)).h)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_gradients_are_those_of_what_a_layer_rounds_its_input_to(bits: int) -> None:
    config, pixels = QuantConfig(Grid(8, symmetric=False), Grid(bits, symmetric=False, per="tensor")), images(8)
    teacher = classifier(cnn()).eval()
    student = calibrate(quantize_model(teacher, config), [{"pixel_values": pixels}])
    name = "module.layer2.0.conv2"
    layer = LayerGradient(At((name,)), sketch=None)
    here = layer(pair(teacher, student, layer, pixels))
    answers: dict[nn.Module, Tensor] = {}

    def note(module: nn.Module, args: Any, out: Tensor) -> None:
        answers[module] = out

    for module in (own := student.get_submodule(name), theirs := teacher.get_submodule(name)):
        module.register_forward_hook(note)
    gradients = []
    for x in pixels.split(1):
        teacher(pixel_values=x)
        student(pixel_values=x)
        loss = 0.5 * (answers[theirs].detach() - answers[own]).square().sum()
        gradients.append(torch.autograd.grad(loss, cast(Tensor, own.weight))[0].flatten())
    assert torch.allclose(here.with_all(here), cosines(gradients, gradients), atol=1e-4)


def test_the_neighbour_is_further_than_at_a_random_direction() -> None:
    teacher, student = models(cnn())
    source, layer = Latents(32, SPEC), at_head(teacher)
    both = pair(teacher, student, layer, source()["pixel_values"])
    here = layer(both).detach()
    matching = GradientMatching(source, layer, 1.0)

    def reached(step: Tensor) -> float:
        assert torch.allclose(step.norm(dim=-1), torch.ones(32), atol=1e-4)
        with torch.no_grad():
            return float(here.with_each(matching.at(both, step)).mean())

    worst = reached(matching.worst(both, here))
    random = [reached(F.normalize(torch.randn(32, 256), dim=-1)) for _ in range(3)]
    assert worst < min(random) - 1e-3
    assert reached(GradientMatching(source, layer, 1.0, released=True).worst(both, here)) > worst


def test_matching_feels_latents_and_generator() -> None:
    teacher, student = models(cnn())
    source, layer = Latents(6, SPEC), at_head(teacher)
    loss = GradientMatching(source, layer)(pair(teacher, student, layer, source()["pixel_values"]))
    assert 0 < loss < 2
    grads = torch.autograd.grad(loss, [source.latents, *source.decoder.parameters()])
    assert all(grad.isfinite().all() for grad in grads) and grads[0].abs().sum() > 0


def test_diversity_is_the_closest_other_and_remembers() -> None:
    teacher, student = models(cnn())
    layer = at_head(teacher)
    one, two = (pair(teacher, student, layer, images(5, seed=seed)) for seed in (0, 1))
    diversity = Diversity(layer, slack=0.1)
    own = layer(one).with_all(layer(one)).abs() - 2 * torch.eye(5)
    assert float(diversity(one)) == pytest.approx(float((own.amax(1) - 0.1).relu().mean()), abs=1e-5)
    diversity.remember(two)
    far = layer(one).with_all(layer(two)).abs().amax(1)
    expected = (torch.maximum(own.amax(1), far) - 0.1).relu().mean()
    assert float(diversity(one)) == pytest.approx(float(expected), abs=1e-5)
    diversity.remember(one)
    assert float(diversity(one)) == pytest.approx(0.9, abs=1e-4), "an image that is there already"


def test_deep_gradients_are_those_of_the_last_convolution() -> None:
    teacher, student = models(cnn())
    layer = LayerGradient(last_feature_map(teacher, SPEC), sketch=4)
    here = layer(pair(teacher, student, layer, images(3)))
    assert here.h.shape == (3, 16) and here.e.shape == (3, 1)
