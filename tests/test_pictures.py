"""Pictures are whole PNG files of what was given, and say what cannot be drawn."""

import math
import sys
from pathlib import Path

import matplotlib.image
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

from zsaq.vision.pictures import _mosaic, _stretched, album, curve_panels, grid, radial_power, spectrum


def images(n: int = 5, channels: int = 3) -> Tensor:
    return torch.randn(n, channels, 16, 16)


def shape(path: Path) -> tuple[int, ...]:
    return matplotlib.image.imread(path).shape


def test_an_album_is_three_pictures_and_nothing_else(tmp_path: Path) -> None:
    drawn = album({"pixel_values": images()}, tmp_path / "new", [3.0, 2.0], filtered=images())
    assert [p.name for p in drawn] == ["images.png", "spectrum.png", "losses.png"]
    assert sorted(tmp_path.glob("new/*")) == sorted(drawn) and all(len(shape(p)) == 3 for p in drawn)


def test_what_is_drawn_depends_on_what_was_synthesized(tmp_path: Path) -> None:
    first, other = images(), images()
    drawn = [grid(x, tmp_path / f"{i}.png").read_bytes() for i, x in enumerate((first, first.clone(), other))]
    assert drawn[0] == drawn[1] != drawn[2]


def test_every_image_is_stretched_to_its_own_range() -> None:
    x = images(3)
    stretched = _stretched(x)
    assert torch.equal(stretched.amin((1, 2, 3)), torch.zeros(3)) and torch.equal(
        stretched.amax((1, 2, 3)), torch.ones(3)
    )
    torch.testing.assert_close(_stretched(7 * x - 3), stretched)
    assert not _stretched(torch.full((1, 3, 4, 4), 5.0)).any()


def test_a_mosaic_holds_images_row_by_row() -> None:
    x = torch.rand(3, 3, 4, 5)
    mosaic = _mosaic(x, 2)
    assert mosaic.shape == (10, 12, 3)
    for i in range(3):
        top, left = i // 2 * 5, i % 2 * 6
        assert torch.equal(mosaic[top : top + 4, left : left + 5], x[i].permute(1, 2, 0))
    assert mosaic[5:, 6:].eq(1).all()


def test_gray_and_many_images(tmp_path: Path) -> None:
    assert grid(images(70, 1), tmp_path / "a.png", limit=2).exists() and grid(images(70), tmp_path / "b.png").exists()


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_other_channels_are_shown_by_their_mean(channels: int, tmp_path: Path) -> None:
    several = images(4, channels)
    shown = grid(several, tmp_path / "a.png").read_bytes()
    assert shown == grid(several.mean(1, keepdim=True), tmp_path / "b.png").read_bytes()
    assert all(path.exists() for path in album(several, tmp_path / "all", [1.0, 0.5], filtered=several))


def test_a_wave_has_its_power_at_its_frequency() -> None:
    wave = torch.cos(2 * math.pi * 3 * torch.arange(16) / 16).expand(1, 1, 16, 16)
    power = radial_power(wave + 4)  # the mean is taken out
    assert power.shape == (9,) and int(power.argmax()) == 3 and power[0] < 1e-6 and power[5:].max() < 1e-6


def test_curves_leave_gaps_where_nothing_was_told(tmp_path: Path) -> None:
    lines = [{"step": 1, "loss": 2.0, "lr": 1.0}, {"step": 2, "loss": None}, {"step": 3, "loss": math.nan, "kl": 1.0}]
    assert curve_panels(lines, tmp_path / "c.png").exists()
    with pytest.raises(ValueError, match="hold no losses"):
        curve_panels([{"step": 1, "lr": 0.1}], tmp_path / "d.png")
    assert not (tmp_path / "d.png").exists()


def test_what_is_no_batch_of_images_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    for wrong in (torch.randn(3, 8, 8), torch.randn(2, 0, 8, 8), torch.randn(0, 3, 8, 8)):
        with pytest.raises(ValueError, match="give \\[B, C, H, W\\]"):
            spectrum(wrong, path)
    with pytest.raises(ValueError, match="not finite"):
        grid(torch.full((1, 3, 4, 4), math.inf), path)
    with pytest.raises(ValueError, match="the same images"):
        grid(images(2), path, filtered=images(3))
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match=r"zsaq\[plot\]"):
        grid(images(), tmp_path / "x.png")


def test_an_error_leaves_the_old_picture_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = grid(images(), tmp_path / "x.png")
    before = path.read_bytes()

    def broken(self, target: Path, **_: object) -> None:
        target.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(Figure, "savefig", broken)
    with pytest.raises(OSError, match="no space"):
        grid(images(), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
