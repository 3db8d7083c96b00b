"""Pictures of every mode, format and orientation come out as a person sees them, or are refused by name."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zsaq.eval.decoding import FRAMES, TRANSPARENT, Unreadable, colours, decoded

GREY = np.arange(0, 250, 10, dtype=np.uint8).reshape(5, 5)[:, :4].copy()  # 5 x 4, so that turns show
COLOUR = np.stack([GREY, 255 - GREY, GREY // 2], -1)
ALPHA = np.where(np.arange(20).reshape(5, 4) % 3, 255, 60).astype(np.uint8)
TURNS: dict[Any, Any] = {  # EXIF's orientation of a stored picture -> the one that is seen
    1: lambda x: x, 2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1], 4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1), 6: lambda x: np.rot90(x, -1), 7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
    8: lambda x: np.rot90(x),
}  # fmt: skip


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def on_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return pixels * share + 255 * (1 - share)


def grey(pixels: np.ndarray) -> np.ndarray:
    return np.repeat(pixels[..., None], 3, -1)


def sixteen(mode: str) -> Image.Image:
    values = GREY.astype(np.uint16) * 257
    return Image.frombytes(mode, (4, 5), values.astype(">u2" if mode == "I;16B" else "<u2").tobytes())


def with_alpha(mode: str) -> Image.Image:
    picture = Image.fromarray(GREY if mode[0] == "L" else COLOUR)
    picture.putalpha(Image.fromarray(ALPHA))
    return picture.convert(mode)


def palette(mode: str) -> Image.Image:
    index = Image.fromarray(np.arange(20, dtype=np.uint8).reshape(5, 4), "L")
    index.putpalette(COLOUR.reshape(-1, 3).tobytes())
    if mode == "PA":
        index = index.convert("PA")
        index.putalpha(Image.fromarray(ALPHA))
    return index


RGB = Image.fromarray(COLOUR)
MODES: dict[str, tuple[Image.Image, np.ndarray]] = {
    "1": (Image.fromarray(GREY > 100), grey(np.where(GREY > 100, 255, 0))),
    "L": (Image.fromarray(GREY), grey(GREY)),
    "P": (palette("P"), COLOUR), "PA": (palette("PA"), on_white(COLOUR, ALPHA)),
    "RGB": (RGB, COLOUR), "RGBX": (RGB.convert("RGBX"), COLOUR), "CMYK": (RGB.convert("CMYK"), COLOUR),
    "YCbCr": (RGB.convert("YCbCr"), COLOUR), "HSV": (RGB.convert("HSV"), COLOUR), "LAB": (RGB.convert("LAB"), COLOUR),
    "LA": (with_alpha("LA"), on_white(grey(GREY), ALPHA)), "La": (with_alpha("La"), on_white(grey(GREY), ALPHA)),
    "RGBA": (with_alpha("RGBA"), on_white(COLOUR, ALPHA)), "RGBa": (with_alpha("RGBa"), on_white(COLOUR, ALPHA)),
    **{mode: (sixteen(mode), grey(GREY)) for mode in ("I;16", "I;16B", "I;16L", "I;16N")},
}  # fmt: skip
KEPT = {  # modes that a format keeps
    "PNG": "1 L P RGB LA RGBA I;16 I;16B", "TIFF": "1 L P PA RGB RGBX CMYK YCbCr LAB LA RGBA I;16 I;16B I;16L",
    "WEBP": "RGB RGBA", "PPM": "1 L RGB I;16", "BMP": "1 L RGB", "GIF": "1 L P", "JPEG": "L RGB CMYK",
}  # fmt: skip
LOSSY = {"YCbCr": 3, "HSV": 5, "LAB": 45, "La": 4, "RGBa": 4}  # what the mode itself cannot hold


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_comes_out_as_it_is_seen(mode: str) -> None:
    image, wanted = MODES[mode]
    assert image.mode == mode
    shown, clear = colours(image)
    assert shown.mode == "RGB" and clear == (mode in ("PA", "LA", "La", "RGBA", "RGBa"))
    np.testing.assert_allclose(np.asarray(shown), wanted, atol=LOSSY.get(mode, 1 if clear else 0))


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in KEPT.items() for mode in modes.split()])
def test_every_mode_through_a_file(mode: str, kind: str) -> None:
    image, wanted = MODES[mode]
    options: dict[str, Any] = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    shown, told = decoded(saved(image, kind, **options | ({"quality": 100} if kind == "JPEG" else {})))
    assert told == ((TRANSPARENT,) if "A" in mode and mode != "LAB" else ())
    np.testing.assert_allclose(np.asarray(shown), wanted, atol=60 if kind == "JPEG" else LOSSY.get(mode, 1))


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow tells of EXIF that is damaged
@pytest.mark.parametrize("orientation", [*TURNS, 0, 9, "junk"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "LZW"])
def test_a_picture_is_turned_as_its_exif_says(kind: str, orientation: Any) -> None:
    exif = Image.Exif()
    if kind == "LZW" and orientation not in TURNS:
        return  # libtiff writes no such tag
    if orientation != "junk":
        exif[0x0112] = orientation
    broken = b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01\x12\0\x03"  # ends within its first entry
    smooth = Image.fromarray(np.kron(COLOUR, np.ones((16, 16, 1), np.uint8)))
    options: dict[str, Any] = {"compression": "tiff_lzw"} if kind == "LZW" else {}
    if orientation != "junk" or kind != "TIFF":
        options["exif"] = broken if orientation == "junk" else exif
    shown, _ = decoded(saved(smooth, "TIFF" if kind == "LZW" else kind, **options))
    wanted = (TURNS[orientation] if orientation in TURNS else TURNS[1])(np.asarray(smooth))
    tolerance = 40 if kind in ("JPEG", "WEBP") else 0
    np.testing.assert_allclose(np.asarray(shown).astype(int), wanted.astype(int), atol=tolerance)


def test_colours_that_stand_for_transparent() -> None:
    for image, key in ((Image.fromarray(GREY), 60), (sixteen("I;16"), 60 * 257), (palette("P"), 5)):
        shown, told = decoded(saved(image, "PNG", transparency=key))
        assert told == (TRANSPARENT,) and shown.getpixel((1, 1)) == (255, 255, 255)
        assert shown.getpixel((0, 0)) == colours(image)[0].getpixel((0, 0))
    each = saved(palette("P"), "PNG", transparency=bytes(ALPHA.reshape(-1)))
    np.testing.assert_allclose(np.asarray(decoded(each)[0]), on_white(COLOUR, ALPHA), atol=1)
    opaque = saved(RGB.convert("RGBA"), "PNG")
    assert decoded(opaque)[1] == () and decoded(opaque)[0].tobytes() == RGB.tobytes()


def test_tiffs_whose_zero_is_white_and_of_twelve_bits() -> None:
    for mode in ("L", "I;16"):
        image = Image.fromarray(GREY) if mode == "L" else sixteen(mode)
        content = bytearray(saved(image, "TIFF"))
        place = content.find(b"\x06\x01\x03\x00\x01\x00\x00\x00") + 8
        content[place] = 0
        assert np.array_equal(np.asarray(decoded(bytes(content))[0]), grey(255 - GREY))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_of_several_frames_is_taken_and_told(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    content = saved(RGB, kind, save_all=True, append_images=[Image.new("RGB", RGB.size)], **options)
    shown, told = decoded(content)
    assert told == (FRAMES,)
    np.testing.assert_allclose(np.asarray(shown), COLOUR, atol=1)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_without_a_white_are_refused(mode: str, tmp_path: Path) -> None:
    Image.fromarray(GREY).convert(mode).save(tmp_path / "grey.tif")
    with pytest.raises(ValueError, match=rf"grey\.tif: nothing tells .*\(mode {mode}\)"):
        decoded(tmp_path / "grey.tif")


def test_a_picture_beyond_the_bound_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("1", (300, 200)).save(tmp_path / "huge.png")
    for bound in (59_999, 30_001, 29_999, 1):  # Pillow warns beyond it, and raises beyond twice
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", bound)
        with pytest.raises(ValueError, match=r"huge\.png: .*(pixels)") as refused:
            decoded(tmp_path / "huge.png")
        assert not isinstance(refused.value, Unreadable)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60_000)
    assert decoded(tmp_path / "huge.png")[0].size == (300, 200)


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICO", "TGA", "PCX", "text", "cut", "empty"])
def test_other_formats_and_damage_are_no_pictures_whatever_they_are_called(tmp_path: Path, kind: str) -> None:
    whole = saved(RGB, "PNG")
    made = {"text": b"hello", "cut": whole[:-40], "empty": b""}
    content = made[kind] if kind in made else saved(RGB, kind)
    (tmp_path / "cat.png").write_bytes(content)
    for source in (content, tmp_path / "cat.png"):
        with pytest.raises(Unreadable, match="no readable image"):
            decoded(source)


@pytest.mark.filterwarnings("ignore")  # Pillow tells of damage that it reads over
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP", "PPM", "TIFF", "GIF"])
def test_damaged_bytes_raise_nothing_else(kind: str) -> None:
    rng, whole = np.random.default_rng(0), saved(RGB, kind)
    for _ in range(150):
        content = bytearray(whole)
        for place in rng.integers(0, len(content), int(rng.integers(1, 5))):
            content[place] = int(rng.integers(0, 256))
        try:
            decoded(bytes(content[: int(rng.integers(1, len(content) + 1))] if rng.random() < 0.3 else content))
        except ValueError:
            continue
