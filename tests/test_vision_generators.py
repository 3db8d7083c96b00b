"""Generators: shapes, labels, norms against the reference, seeds; the searched cells; the swing."""

import pytest
import torch
from torch import nn

import reference_vision_priors as reference
from zsaq.train.synthesis import Source
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.papers.arc import CIFAR10, CIFAR100, MOBILENET_V2, RESNET18, RESNET50, Cells, SearchedGenerator
from zsaq.vision.papers.qimera import Superposed
from zsaq.vision.sources.generators import Conditional, ConditionalNorm, Decoder, seeded
from zsaq.vision.sources.swing import Latents, Paddings, swing

SPEC = ImageSpec(5, 16)
EMBEDDING = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))


def sources(seed: int = 0) -> list[Source]:
    return [
        Conditional(SPEC, 4, seed=seed),
        Conditional(ImageSpec(5, 68), 2, seed=seed),
        Superposed(SPEC, 4, EMBEDDING, share=1.0, mix=3, seed=seed),
        SearchedGenerator(SPEC, 4, CIFAR10, seed=seed),
        Latents(4, SPEC, width=8, seed=seed),
    ]


@pytest.mark.parametrize("kind", range(5))
def test_sources_are_seeded_normalised_and_trained_whole(kind: int) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    source, twin, other = sources()[kind], sources()[kind], sources(1)[kind]
    assert torch.equal(torch.get_rng_state(), state)
    batch, same, another = source(), twin(), other()
    pixels = batch["pixel_values"]
    assert pixels.shape[1:] == (3, 68, 68) if kind == 1 else pixels.shape == (4, 3, 16, 16)
    torch.testing.assert_close(pixels, same["pixel_values"])
    assert not torch.allclose(pixels, another["pixel_values"])
    torch.testing.assert_close(pixels.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(pixels.var((0, 2, 3), unbiased=False), torch.ones(3), atol=1e-2, rtol=0)
    fresh = source()["pixel_values"]
    assert torch.allclose(fresh, pixels) == isinstance(source, Latents)
    grads = torch.autograd.grad(pixels.pow(3).sum(), list(source.parameters()))
    assert all(g.isfinite().all() for g in grads) and sum(bool(g.abs().sum() > 0) for g in grads) > len(grads) / 2


def test_seeds_of_generators_leave_other_devices_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    with seeded(7):
        drawn = torch.rand(3)
    assert not seeds and torch.equal(drawn, torch.rand(3, generator=torch.Generator().manual_seed(7)))


def test_conditional_norms_agree_with_the_reference() -> None:
    torch.manual_seed(0)
    norm = ConditionalNorm(3, 5, 0.8)
    nn.init.normal_(norm.scale)
    nn.init.normal_(norm.shift)
    x, hard, soft = torch.randn(4, 3, 2, 2), torch.tensor([0, 4, 4, 2]), torch.rand(4, 5).softmax(1)
    for labels in (hard, soft):
        wanted = reference.conditional_norm(x, labels, norm.scale.detach(), norm.shift.detach(), 0.8)
        torch.testing.assert_close(norm(x, labels).detach(), wanted)
    torch.testing.assert_close(norm(x, nn.functional.one_hot(hard, 5).float()), norm(x, hard))


def test_published_sizes() -> None:
    def size(source: nn.Module) -> int:
        return sum(p.numel() for p in source.parameters())

    with torch.device("meta"):
        small, large = (
            Decoder(ImageSpec(10, 32), 100, by_label=False),
            Decoder(ImageSpec(1000, 224), 100, by_label=True),
        )
    assert size(small) == pytest.approx(1.05e6, rel=0.01) and size(large) == pytest.approx(41.4e6, rel=0.01)
    genie = Latents(2, ImageSpec(10, 32))
    assert size(genie) == pytest.approx(2.2e6, rel=0.02) and genie.latents.shape == (2, 256)


def test_labels_change_the_image() -> None:
    for spec in (SPEC, ImageSpec(5, 68)):
        source = Conditional(spec, 2)
        nn.init.normal_(source.decoder.norms[0].weight if source.embedding else source.decoder.norms[0].scale)  # type: ignore[arg-type]
        z = torch.randn(2, 100, generator=torch.Generator().manual_seed(0))
        latents = [
            z if source.embedding is None else source.embedding(y) * z
            for y in (torch.tensor([0, 1]), torch.tensor([2, 3]))
        ]
        a, b = (
            source.decoder(u, y) for u, y in zip(latents, (torch.tensor([0, 1]), torch.tensor([2, 3])), strict=True)
        )
        assert not torch.allclose(a, b)


def test_superposed_labels_are_shares_of_up_to_mix_classes() -> None:
    mixed = Superposed(SPEC, 64, EMBEDDING, share=1.0, mix=3)()["labels"]
    single = Superposed(SPEC, 64, EMBEDDING, share=0.0, mix=3)()["labels"]
    torch.testing.assert_close(mixed.sum(1), torch.ones(64))
    torch.testing.assert_close(single.sum(1), torch.ones(64))
    assert ((mixed > 0).sum(1) <= 3).all() and ((mixed > 0).sum(1) > 1).any() and ((single > 0).sum(1) == 1).all()
    source = Superposed(SPEC, 2, EMBEDDING, share=0.5)
    pure = [bool(((source()["labels"] > 0).sum(1) == 1).all()) for _ in range(30)]
    assert 8 < sum(pure) < 28
    assert torch.equal(source.embedding, EMBEDDING) and source.embedding is not EMBEDDING


@pytest.mark.parametrize("cells", [CIFAR10, CIFAR100, RESNET18, RESNET50, MOBILENET_V2])
def test_every_searched_net_paints(cells: Cells) -> None:
    source = SearchedGenerator(ImageSpec(3, 8), 2, cells)
    assert source()["pixel_values"].shape == (2, 3, 8, 8)
    edges = sum(kernel != "-" for convs in cells.convs for kernel in convs.split())
    crossing = sum(up != "-" for cross in cells.cross for up in cross)
    assert sum(len(cell.convs) for cell in source.cells) == edges  # type: ignore[arg-type, misc]
    assert sum(len(cell.cross) for cell in source.cells) == crossing  # type: ignore[arg-type, misc]
    assert all(len(text.split()) == 5 for text in cells.convs) and len(cells.ups) == 6
    assert all(len(text) == 6 for text in cells.cross)


def test_what_cannot_be_generated_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        Conditional(ImageSpec(5, 18), 4)
    with pytest.raises(ValueError, match="batch_size is 1"):
        Conditional(SPEC, 1)
    with pytest.raises(ValueError, match="multiple of 8"):
        SearchedGenerator(ImageSpec(5, 20), 4, RESNET18)
    with pytest.raises(ValueError, match="a row for each of 5 classes"):
        Superposed(SPEC, 4, EMBEDDING[:4])
    with pytest.raises(ValueError, match="share is 2"):
        Superposed(SPEC, 4, EMBEDDING, share=2)
    with pytest.raises(ValueError, match="n is 1"):
        Latents(1, SPEC)


def test_swing_shifts_the_inputs_of_strided_convolutions_and_ends() -> None:
    eye = nn.Conv2d(1, 1, 1, stride=2, bias=False)
    plain = nn.Conv2d(1, 1, 1, bias=False)
    for conv in (eye, plain):
        nn.init.ones_(conv.weight)
    model = nn.ModuleList([eye, plain])
    x = torch.arange(36.0).view(1, 1, 6, 6)
    padded = nn.functional.pad(x, (1, 1, 1, 1), mode="reflect")
    shifts = [padded[..., i : i + 6 : 2, j : j + 6 : 2] for i in range(3) for j in range(3)]
    with swing(model, seed=0):
        seen = [eye(x) for _ in range(60)]
        assert torch.equal(plain(x), x) and torch.equal(eye(x[..., :1, :1]), x[..., :1, :1])
    drawn = {next(i for i, shift in enumerate(shifts) if torch.equal(s, shift)) for s in seen}
    assert drawn == set(range(9))
    assert torch.equal(eye(x), x[..., ::2, ::2])
    for named in ((), ("input",)):
        with swing(model, seed=0):
            assert torch.equal(eye(**dict.fromkeys(named, x)) if named else eye(x), seen[0])


class Called(nn.Module):
    """The padding of TensorFlow's layers, by a call."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.pad(input=x, pad=(0, 1, 0, 1), mode="constant", value=0.5)


PADDINGS = [
    nn.ZeroPad2d((0, 1, 0, 1)), nn.ConstantPad2d(1, 3.0), nn.ReflectionPad2d(1), nn.ReplicationPad2d(2),
    nn.CircularPad2d(1), Called(), nn.Sequential(nn.ZeroPad2d(1), nn.Identity(), nn.ReplicationPad2d((1, 0, 0, 1))),
]  # fmt: skip


@pytest.mark.parametrize("padding", PADDINGS, ids=lambda each: type(each).__name__)
def test_swing_shifts_what_is_padded_and_the_border_stays(padding: nn.Module) -> None:
    conv = nn.Conv2d(1, 1, 3, stride=2, bias=False)
    model = nn.Sequential(padding, conv)
    x = torch.arange(1.0, 37.0).view(1, 1, 6, 6)
    further = nn.functional.pad(x, (1, 1, 1, 1), mode="reflect")
    shifted = [model(further[..., i : i + 6, j : j + 6]) for i in range(3) for j in range(3)]
    with swing(model, seed=0):
        seen = [model(x) for _ in range(60)]
    drawn = {next(i for i, each in enumerate(shifted) if torch.equal(s, each)) for s in seen}
    assert drawn == set(range(9))


def test_paddings_are_forgotten_with_what_they_made() -> None:
    with (paddings := Paddings()):
        padded = nn.functional.pad(torch.ones(1, 1, 2, 2), (1, 1))
        assert len(paddings.made) == 1
        del padded
        assert not len(paddings.made)
