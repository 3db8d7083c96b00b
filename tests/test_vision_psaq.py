"""PSAQ-ViT: its entropy against plain loops, what its images are, and the student that they calibrate."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from reference_vision_psaq import entropies, total_variation
from vision_toys import deit, images, swin, vit
from zsaq import Pair, calibrate, coverage, quantize_model
from zsaq.quant.layers import QuantConv2d
from zsaq.quant.ranges import Static
from zsaq.train.pair import Capture, run_model
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.losses.patches import PatchSimilarityEntropy, differential_entropy, patches_of, similarities
from zsaq.vision.models import attentions, spec_of
from zsaq.vision.papers.psaq import (
    Jittered,
    VariationOf,
    photographic,
    prior,
    psaq_images,
    psaq_learned,
    valid,
    warm_cosine,
)
from zsaq.vision.presets import psaq as preset
from zsaq.vision.sources.pixels import Pixels

SPEC = ImageSpec(classes=4, size=16)


def seen(teacher, pixels: Tensor) -> list[tuple[int, Tensor]]:
    """Numbers of heads and contexts of the teacher's attentions."""
    counts = attentions(teacher)
    capture = Capture("teacher", lambda _, module: module in counts, "input")
    return [(counts[m], value) for m, value in run_model(teacher, {"pixel_values": pixels}, (capture,)).seen[capture]]


@pytest.mark.parametrize(("make", "size", "special"), [(vit, 16, 1), (deit, 16, 2), (swin, 32, 0)])
def test_the_entropy_equals_plain_loops(make, size: int, special: int) -> None:
    teacher, pixels = make(), images(2, size)
    with torch.no_grad():
        contexts = seen(teacher, pixels)
        entropy = PatchSimilarityEntropy(attentions(teacher))
        value = entropy(Pair(teacher, teacher, {"pixel_values": pixels}, entropy.captures))
    layers = [entropies(context.double().tolist(), heads, special) for heads, context in contexts]
    assert float(value) == pytest.approx(-sum(sum(each) / len(each) for each in layers), rel=1e-3)


def test_the_context_is_what_attention_mixes(seed: int) -> None:
    """The projection's input, mean over heads, is the mean over heads of probabilities times values."""
    teacher = vit()
    teacher.set_attn_implementation("eager")
    attention = next(m for m in teacher.modules() if m is not teacher and "o_proj" in dict(m.named_children()))
    values: list[Tensor] = []
    handle = attention.v_proj.register_forward_hook(lambda m, args, output: values.append(output))
    answer = teacher(pixel_values=images(3), output_attentions=True)
    handle.remove()
    v = values[0].unflatten(-1, (2, -1)).transpose(1, 2)
    expected = (answer.attentions[0] @ v).mean(1)
    heads, context = seen(teacher, images(3))[0]
    torch.testing.assert_close(patches_of(context, heads), expected[:, 1:], atol=1e-6, rtol=1e-5)


def test_similarities_are_cosines() -> None:
    x = torch.randn(2, 4, 8)
    expected = torch.nn.functional.cosine_similarity(x[:, :, None], x[:, None], dim=-1)
    torch.testing.assert_close(similarities(3 * x), expected)


def test_one_node_at_a_time_has_the_gradient_of_all_at_once() -> None:
    x = torch.rand(2, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: differential_entropy(v.clamp(0.05, 0.95), 10, 0.2), (x,))
    low, high = x.detach().aminmax()
    at = torch.linspace(float(low), float(high), 10, dtype=torch.float64)
    kernels = torch.exp(-(((x - at[:, None, None, None]) / 0.01) ** 2) / 2) / (0.01 * math.sqrt(2 * math.pi))
    density = kernels.mean((2, 3)) + 1e-4
    whole = torch.trapezoid(-density * density.log(), at[:, None], dim=0).sum()
    (expected,) = torch.autograd.grad(whole, x)
    (slope,) = torch.autograd.grad(differential_entropy(x, 10, 0.01).sum(), x)
    torch.testing.assert_close(slope, expected)


def test_memory_of_the_entropy_does_not_grow_with_the_nodes() -> None:
    def kept(nodes: int) -> int:
        held: dict[int, int] = {}

        def pack(x: Tensor) -> Tensor:
            held[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        table = torch.rand(2, 32, 32, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            differential_entropy(table, nodes, 0.01)
        return sum(held.values())

    table = 2 * 32 * 32 * 4
    assert kept(40) - kept(10) < table / 2


def test_spread_similarities_have_the_higher_entropy() -> None:
    alike, spread = 1 - 0.01 * torch.rand(1, 16, 16), torch.rand(1, 16, 16)
    # The same extremes, so that the nodes are the same.
    alike[0, 0, :2], spread[0, 0, :2] = torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0])
    assert differential_entropy(spread, 10, 0.05) > differential_entropy(alike, 10, 0.05)


def test_identical_patches_have_no_entropy_and_no_gradient() -> None:
    table = torch.ones(1, 4, 4, requires_grad=True)
    value = differential_entropy(table, 10, 0.01)
    assert value.detach().item() == 0
    assert not torch.autograd.grad(value.sum(), table)[0].any()


def test_wrong_entropies_are_refused() -> None:
    with pytest.raises(ValueError, match="vision transformer"):
        PatchSimilarityEntropy({})
    for nodes, bandwidth in ((1, 0.01), (10, 0.0)):
        with pytest.raises(ValueError, match="at least 2"):
            PatchSimilarityEntropy({torch.nn.Linear(2, 2): 1}, nodes, bandwidth)


def test_variation_is_that_of_plain_loops_and_scales_with_the_batch() -> None:
    x = torch.randn(2, 3, 5, 4)
    pair = Pair(vit(), vit(), {"pixel_values": x})
    wanted = total_variation(x.double().tolist())
    assert float(VariationOf(wanted)(pair)) == pytest.approx(0, abs=1e-4)
    assert float(VariationOf(wanted + 3)(pair)) == pytest.approx(3, abs=1e-4)
    assert 2500 <= photographic(32, ImageSpec(10, 224)) <= 3000
    assert photographic(8, ImageSpec(10, 32)) == pytest.approx(photographic(32, ImageSpec(10, 224)) / 2 / 7)


def test_jitter_rolls_both_axes_alike_and_mirrors() -> None:
    source = Pixels(2, SPEC)
    jittered, pixels = Jittered(source, 3), source.pixels.detach()
    allowed = [pixels.roll((k, k), (2, 3)) for k in range(-3, 4)]
    drawn = [jittered()["pixel_values"] for _ in range(40)]
    drawn_as = {
        (k, mirrored)
        for shown in drawn
        for k, rolled in zip(range(-3, 4), allowed, strict=True)
        for mirrored in (False, True)
        if torch.equal(shown, rolled.flip(3) if mirrored else rolled)
    }
    assert len(drawn_as) > 7 and {mirrored for _, mirrored in drawn_as} == {False, True}
    assert all(any(torch.equal(s, r) or torch.equal(s, r.flip(3)) for r in allowed) for s in drawn)


def test_the_learning_rate_warms_up_and_goes_to_zero() -> None:
    shares = [warm_cosine(step, 500) for step in range(501)]
    assert shares[0] == 0.01 and shares[99] == shares[100] == 1 and shares[300] == pytest.approx(0.5)
    assert shares[500] == pytest.approx(0) and warm_cosine(0, 1) == 1


@pytest.mark.parametrize(("make", "size"), [(vit, 16), (deit, 16), (swin, 32)])
def test_images_please_the_teacher_and_are_pictures(make, size: int, tmp_path: Path) -> None:
    teacher = make()
    spec = spec_of(teacher)
    folders = [tmp_path if make is vit else None, None, None]
    every = [psaq_images(teacher, spec, images=4, steps=30, seed=i, folder=f) for i, f in enumerate(folders)]
    objective, batch = prior(teacher, 4, spec), every[0]
    noise = [Pixels(4, spec, batch["labels"])() for batch in every]
    with torch.no_grad():  # one seed alone may end higher: these teachers are random, and few steps swing
        before, after = (
            sum(float(objective(Pair(teacher, teacher, b, objective.captures))) for b in each)
            for each in (noise, every)
        )
    assert after < before
    low, high = valid(spec, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    pixels = batch["pixel_values"]
    assert pixels.shape == (4, 3, size, size) and not pixels.requires_grad
    assert (pixels >= low).all() and (pixels <= high).all()
    drawn = sorted(p.name for p in tmp_path.iterdir())
    assert drawn == (["images.png", "losses.png", "spectrum.png"] if make is vit else [])


def test_the_same_seed_gives_the_same_images() -> None:
    one, same, other = (psaq_images(vit(), SPEC, images=2, steps=2, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one["pixel_values"], same["pixel_values"]) and torch.equal(one["labels"], same["labels"])
    assert not torch.equal(one["pixel_values"], other["pixel_values"])


def test_a_psaq_student_has_the_extremes_of_its_images() -> None:
    teacher = vit()
    batch = psaq_images(teacher, SPEC, images=4, steps=4)
    student = calibrate(quantize_model(teacher, preset("w8a8", teacher)), [batch])
    first = next(m for m in student.modules() if isinstance(m, QuantConv2d))
    assert first.input_quantizer is not None
    ranges = first.input_quantizer.ranges
    assert isinstance(ranges, Static)
    lo, hi = ranges.observer.bounds()
    assert float(lo) == pytest.approx(float(batch["pixel_values"].min()), rel=1e-5)
    assert float(hi) == pytest.approx(float(batch["pixel_values"].max()), rel=1e-5)
    states = coverage(student)
    assert sum(text.startswith("weights 8-bit") for text in states.values()) == 2 * 6 + 2
    with torch.no_grad():
        answer, right = (m(pixel_values=batch["pixel_values"]).logits for m in (student, teacher))
    assert (answer - right).abs().max() < 0.25 * right.std()


def test_reconstruction_brings_w4a4_nearer_to_the_teacher() -> None:
    teacher = vit()
    config = preset("w4a4", teacher)
    batch = psaq_images(teacher, SPEC, images=8, steps=2)
    plain = calibrate(quantize_model(teacher, config), [batch])
    learned = psaq_learned(teacher, config, SPEC, batch, steps=20)
    with torch.no_grad():
        right, first, better = (m(pixel_values=batch["pixel_values"]).logits for m in (teacher, plain, learned))
    assert (better - right).square().mean() < 0.8 * (first - right).square().mean()


def test_the_range_of_the_image_is_black_to_white_whatever_was_made() -> None:
    teacher = vit()
    gray = {"pixel_values": 0.01 * images(4, 16)}
    mean, deviation = (0.5, 0.4, 0.3), (0.2, 0.25, 0.2)
    student = psaq_learned(teacher, preset("w4a4", teacher), SPEC, gray, steps=2, mean=mean, deviation=deviation)
    first = next(m for m in student.modules() if isinstance(m, QuantConv2d))
    assert first.input_quantizer is not None
    scale, zero = first.input_quantizer.ranges(gray["pixel_values"], first.input_quantizer.grid)
    assert float(scale) == pytest.approx((0.7 / 0.2 + 0.5 / 0.2) / 15) and float(zero) == 6
    with pytest.raises(ValueError, match="one number for each of 3 channels"):
        psaq_learned(teacher, preset("w4a4", teacher), SPEC, gray, mean=(0.5,))


def test_what_psaq_cannot_do_is_told() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        psaq_images(vit(), SPEC, images=2, steps=1)
    with pytest.raises(ValueError, match="one number for each of 3 channels"):
        psaq_images(vit(), SPEC, images=2, steps=2, mean=(0.5,))
    with pytest.raises(ValueError, match="attention"):
        psaq_images(torch.nn.Linear(2, 2), SPEC)
