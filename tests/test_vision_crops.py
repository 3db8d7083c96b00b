"""Random crops of a batch against one image at a time; endless views of a set; pixels as a source."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference_vision_priors as reference
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.sources.crops import boxes, crop, random_crops, views
from zsaq.vision.sources.pixels import Cropped, Pixels, uniform_labels

SPEC = ImageSpec(4, 12)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(deadline=None, max_examples=15)
@given(st.data())
def test_crops_agree_with_cutting_and_resizing_each_image(data: st.DataObject) -> None:
    size = (data.draw(st.integers(2, 9)), data.draw(st.integers(2, 9)))
    cut_out = []
    for _ in range(2):
        height, width = data.draw(st.integers(1, size[0])), data.draw(st.integers(1, size[1]))
        corner = data.draw(st.integers(0, size[0] - height)), data.draw(st.integers(0, size[1] - width))
        cut_out.append([*corner, height, width])
    flipped = torch.tensor([True, False])
    pixels = torch.randn(2, 2, *size, generator=rng())
    got = crop(pixels, torch.tensor(cut_out), flipped)
    for i in range(2):
        torch.testing.assert_close(
            got[i], reference.crop(pixels[i], cut_out[i], bool(flipped[i])), atol=1e-4, rtol=1e-4
        )


def test_boxes_lie_inside_and_cover_the_asked_share() -> None:
    top, left, height, width = boxes(400, (40, 40), (0.5, 1.0), rng()).T
    assert ((top >= 0) & (left >= 0) & (top + height <= 40) & (left + width <= 40)).all()
    share = (height * width) / 1600
    assert share.min() > 0.46 and share.mean() > 0.65 and share.max() > 0.9
    aspect = width / height
    assert 0.7 < aspect.min() < 0.85 and 1.18 < aspect.max() < 1.42
    assert len(set(top.tolist())) > 5 and len(set(left.tolist())) > 5
    # A box that never fits is the whole image.
    assert (boxes(5, (2, 64), (1.0, 1.0), rng())[:, 2:] == torch.tensor([2, 64])).all()


def test_gradients_reach_the_pixels_and_seeds_repeat() -> None:
    pixels = torch.randn(3, 3, 12, 12, requires_grad=True)
    out = random_crops(pixels, (0.5, 1.0), rng(1))
    (grad,) = torch.autograd.grad(out.sum(), pixels)
    assert out.shape == pixels.shape and (grad.flatten(1).abs().sum(1) > 0).all()
    assert torch.equal(out, random_crops(pixels, (0.5, 1.0), rng(1)))
    assert not torch.equal(out, random_crops(pixels, (0.5, 1.0), rng(2)))
    with pytest.raises(ValueError, match="scale is"):
        random_crops(pixels, (0.0, 1.0), rng())


def test_views_show_every_sample_once_before_any_twice() -> None:
    batch = {"pixel_values": torch.arange(5.0).view(5, 1, 1, 1), "labels": torch.arange(5)}
    stream = views(batch, 2, seed=3, crops=False)
    seen = [next(stream) for _ in range(5)]
    assert all(torch.equal(b["pixel_values"].flatten().long(), b["labels"]) for b in seen)
    order = torch.cat([b["labels"] for b in seen]).tolist()
    assert sorted(order[:5]) == sorted(order[5:]) == list(range(5)) and order[:5] != order[5:]
    again = views(batch, 2, seed=3, crops=False)
    assert torch.cat([next(again)["labels"] for _ in range(5)]).tolist() == order


def test_views_crop_and_may_be_larger_than_the_set() -> None:
    batch = {"pixel_values": torch.randn(3, 3, 12, 12, generator=rng())}
    part = next(views(batch, 7))["pixel_values"]
    assert part.shape == (7, 3, 12, 12)
    assert not any(torch.equal(image, whole) for image in part for whole in batch["pixel_values"])
    with pytest.raises(ValueError, match="batch_size is 0"):
        views(batch, 0)
    with pytest.raises(ValueError, match="there are 0 images"):
        views({"pixel_values": torch.empty(0, 3, 12, 12)}, 2)


def test_pixels_are_parameters_and_give_copies() -> None:
    labels = uniform_labels(4, SPEC, 1)
    source = Pixels(4, SPEC, labels, seed=5)
    batch = source()
    assert torch.equal(batch["pixel_values"], source.pixels) and torch.equal(batch["labels"], labels)
    assert batch["pixel_values"].data_ptr() != source.pixels.data_ptr() and batch["pixel_values"].requires_grad
    assert torch.equal(Pixels(4, SPEC, seed=5).pixels, source.pixels) and "labels" not in Pixels(4, SPEC)()
    start = torch.ones(2, 3, 12, 12)
    assert torch.equal(Pixels(2, SPEC, init=start).pixels, start)
    assert labels.dtype == torch.int64 and set(uniform_labels(200, SPEC).tolist()) == {0, 1, 2, 3}
    with pytest.raises(ValueError, match="init of shape"):
        Pixels(3, SPEC, init=start)
    with pytest.raises(ValueError, match="4 labels"):
        Pixels(3, SPEC, labels)


def test_cropped_crops_the_asked_share_of_calls() -> None:
    source = Pixels(2, SPEC)
    assert torch.equal(Cropped(source, share=0.0)()["pixel_values"], source.pixels)
    half = Cropped(source, share=0.5, seed=1)
    kept = [torch.equal(half()["pixel_values"], source.pixels) for _ in range(40)]
    assert 10 < sum(kept) < 30
    assert next(iter(half.parameters())) is source.pixels
    with pytest.raises(ValueError, match="share is 2"):
        Cropped(source, share=2)
