"""Mixtures against one image at a time; a stream of them that is drawn again; KL steps on them after one pass."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import zsaq.vision.onepass
from vision_toys import CLASSES, images, resnet
from zsaq import quantize_model
from zsaq.train.objectives import KL
from zsaq.train.one_pass import one_pass
from zsaq.train.pair import Pair
from zsaq.train.randomness import generator
from zsaq.train.synthesis import seed_of
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.models import classifier
from zsaq.vision.onepass import onepass, onepass_kl, room
from zsaq.vision.presets import preset_config
from zsaq.vision.sources.mixtures import SHARE, beside, mixed, mixtures, pasted


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def reference(pixels: Tensor, others: Tensor, where: Tensor) -> Tensor:
    """`pasted`, an image and a box at a time."""
    out = pixels.clone()
    for i, (top, left, height, width) in enumerate(where.tolist()):
        out[i, :, top : top + height, left : left + width] = others[i, :, top : top + height, left : left + width]
    return out


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.data())
def test_pasting_agrees_with_each_image_alone(count: int, height: int, width: int, data: st.DataObject) -> None:
    where = []
    for _ in range(count):
        h, w = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
        where.append([data.draw(st.integers(0, height - h)), data.draw(st.integers(0, width - w)), h, w])
    pixels, others = torch.randn(2, count, 3, height, width, generator=rng())
    box = torch.tensor(where)
    assert torch.equal(pasted(pixels, others, box), reference(pixels, others, box))


def test_every_image_holds_a_box_of_the_one_before_it_and_nothing_else() -> None:
    side = 40
    plain = torch.arange(1.0, 33.0)[:, None, None, None].expand(-1, 3, side, side)
    sloped = plain + torch.linspace(0, 0.5, side)
    out = mixed(sloped, rng())
    number = out.floor()
    own = (number == plain).flatten(1)
    share = 1 - own.float().mean(1)
    assert torch.equal(own, ~(number == plain.roll(1, 0)).flatten(1))
    assert SHARE[0] * 0.8 < share.min() and share.max() < SHARE[1] * 1.1 and 0.2 < share.mean() < 0.35
    mirrored = out[:, 0, 0, -1] - out[:, 0, 0, -1].floor() < 0.25  # where the corner is the image's own
    assert 8 < mirrored.sum() < 24
    assert torch.equal(out, mixed(sloped, rng())) and not torch.equal(out, mixed(sloped, rng(1)))


@pytest.mark.parametrize(("count", "batch_size"), [(1, 4), (4, 1)])
def test_one_image_alone_has_none_to_mix_with(count: int, batch_size: int) -> None:
    with pytest.raises(ValueError, match="a mixture is of two"):
        mixtures({"pixel_values": torch.ones(count, 3, 8, 8)}, batch_size)
    with pytest.raises(ValueError, match="there is 1 image to mix"):
        mixed(torch.ones(1, 3, 8, 8), rng())


def test_mixtures_stand_behind_their_images() -> None:
    pixels = torch.randn(4, 3, 40, 40, generator=rng())
    batch, draw = beside(pixels, 2, rng(1)), rng(1)
    assert torch.equal(batch, torch.cat([pixels, mixed(pixels, draw), mixed(pixels, draw)]))
    assert torch.equal(beside(pixels, 0, rng()), pixels)
    for wrong in (-1, 2.5, "3", True):
        with pytest.raises(ValueError, match=r"mixes is .*; give at least 0, as a whole number"):
            beside(pixels[:1], wrong, rng())  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="there is 1 image to mix"):
        beside(pixels[:1], 1, rng())


def test_one_pass_sees_the_images_and_mixtures_of_them() -> None:
    teacher, spec, pixels = classifier(resnet()), ImageSpec(CLASSES, 32), images(8, 32, seed=1)
    config = preset_config("w2a2", "brecq", teacher, spec)

    def fit(batch: Tensor) -> dict[str, Tensor]:
        return one_pass(quantize_model(teacher, config), teacher, [{"pixel_values": batch}]).state_dict()

    def row(mixes: int, seed: int = 0) -> dict[str, Tensor]:
        return onepass(teacher, config, spec, {"pixel_values": pixels}, mixes=mixes, seed=seed).state_dict()

    def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
        return all(torch.equal(value, other[name]) for name, value in one.items())

    assert same(row(0), fit(pixels)) and same(row(0), row(0, 5))
    mixture = generator(seed_of(seed_of(5, 0), 2))
    assert same(row(2, 5), fit(beside(pixels, 2, mixture)))
    assert not same(row(2, 5), row(2, 6))


@pytest.mark.parametrize(
    ("count", "side", "taken"),
    [(64, 32, 3), (64, 128, 3), (65, 128, 2), (128, 128, 1), (64, 224, 0), (1, 8, 0)],
)
def test_mixtures_are_as_many_as_there_is_room_for(count: int, side: int, taken: int) -> None:
    assert room(torch.empty(1, 3, side, side).expand(count, -1, -1, -1)) == taken


def test_fewer_mixtures_are_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    teacher, spec, pixels = classifier(resnet()), ImageSpec(CLASSES, 32), images(4, 32)
    config = preset_config("w4a4", "brecq", teacher, spec)
    monkeypatch.setattr(zsaq.vision.onepass, "PIXELS", 3 * 4 * 32 * 32)
    few = onepass(teacher, config, spec, {"pixel_values": pixels}).state_dict()
    assert (
        "onepass: 2 of 3 mixtures of each of the images 4 x 3 x 32 x 32; mixes= takes more" in capsys.readouterr().err
    )
    onepass(teacher, config, spec, {"pixel_values": pixels[:1]})
    assert "onepass: 0 of 3 mixtures of each of the images 1 x 3 x 32 x 32; one alone" in capsys.readouterr().err
    given = onepass(teacher, config, spec, {"pixel_values": pixels}, mixes=2).state_dict()
    monkeypatch.undo()
    onepass(teacher, config, spec, {"pixel_values": pixels})
    assert "onepass: 3 mixtures of each of the images 4 x 3 x 32 x 32\n" in capsys.readouterr().err
    assert "mixtures of each" not in capsys.readouterr().err
    assert all(torch.equal(value, given[name]) for name, value in few.items())


def test_a_stream_has_no_labels_and_shows_all_before_any_twice() -> None:
    images = {"pixel_values": torch.arange(6.0)[:, None, None, None].expand(-1, 1, 40, 40), "labels": torch.arange(6)}
    stream = mixtures(images, 3, seed=2)
    drawn = [next(stream) for _ in range(4)]
    assert all(list(batch) == ["pixel_values"] and batch["pixel_values"].shape == (3, 1, 40, 40) for batch in drawn)
    own = torch.cat([batch["pixel_values"].flatten(1).mode(1).values for batch in drawn]).tolist()
    assert sorted(own[:6]) == sorted(own[6:]) == list(range(6))
    again = mixtures(images, 3, seed=2)
    assert all(torch.equal(next(again)["pixel_values"], batch["pixel_values"]) for batch in drawn)
    other = mixtures(images, 3, seed=3)
    assert not torch.equal(next(other)["pixel_values"], drawn[0]["pixel_values"])
    with pytest.raises(ValueError, match="batch_size 0"):
        mixtures(images, 0)


def test_steps_of_kl_bring_a_student_nearer_than_their_start_on_unseen_mixtures_of_its_images() -> None:
    teacher, spec = resnet(), ImageSpec(CLASSES, 32)
    config = preset_config("w2a2", "brecq", teacher, spec)
    shown = {"pixel_values": images(16, 32, seed=1)}
    held = torch.cat([mixed(shown["pixel_values"], rng(seed)) for seed in (7, 8, 9, 10)])  # never seen
    before = {name: value.clone() for name, value in teacher.state_dict().items()}

    def distance(student: nn.Module) -> float:
        with torch.no_grad():
            return float(KL()(Pair(classifier(teacher), student, {"pixel_values": held})))

    first = {"pixel_values": mixed(shown["pixel_values"], generator(seed_of(seed_of(3, 0), 2)))}
    passed = onepass(teacher, config, spec, first, mixes=0)  # where the steps begin
    student = onepass_kl(teacher, config, spec, shown, steps=60, batch_size=8, lr=3e-4, seed=3)
    assert distance(student) < distance(passed)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    again = onepass_kl(teacher, config, spec, shown, steps=60, batch_size=8, lr=3e-4, seed=3)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in student.state_dict().items())
