"""A picture's file as the RGB image that a person would see: upright, on white, with its own range from black to white.

Only the formats named here are opened, whatever a file is called: others would hand it to programs beside Pillow.
Colour profiles are not applied.
"""

import io
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Final, final

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS: Final = {
    "PNG": (".png",), "JPEG": (".jpg", ".jpeg"), "BMP": (".bmp",), "WEBP": (".webp",), "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"), "GIF": (".gif",),
}  # fmt: skip
SUFFIXES: Final = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
FRAMES: Final = "hold several frames, of which the first is taken"
TRANSPARENT: Final = "are transparent and were laid on white"
SIXTEEN: Final = ("I;16", "I;16B", "I;16L", "I;16N")
BITS, PHOTOMETRIC = 258, 262  # TIFF's tags
BROKEN: Final = (  # what Pillow's readers raise on files that are damaged or made up
    OSError, SyntaxError, ValueError, ArithmeticError, LookupError, EOFError, TypeError, AttributeError, RuntimeError,
    MemoryError, struct.error, zlib.error,
)  # fmt: skip


@final
class Unreadable(ValueError):
    """A file that is no whole picture in one of `FORMATS`."""


def decoded(content: bytes | Path, name: str = "") -> tuple[Image.Image, tuple[str, ...]]:
    """The picture in RGB, and what of it has to be told: `FRAMES`, `TRANSPARENT`.

    `name` stands for it in errors; by default the file's. Raises `Unreadable` for what is no picture, and ValueError
    for one that is larger than Pillow's bound, or whose numbers have no white.
    """
    name = name or (f"{len(content)} bytes" if isinstance(content, bytes) else str(content))
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content, formats=list(FORMATS)) as image:
            bounded(image.size)
            frames = (FRAMES,) if getattr(image, "is_animated", False) else ()
            image.load()
            turn(image)
            shown, clear = colours(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, _Refused) as error:
        raise ValueError(f"{name}: {error}") from error
    except UnidentifiedImageError as error:
        raise Unreadable(f"{name}: no readable image, in none of the formats {', '.join(FORMATS)}") from error
    except BROKEN as error:
        raise Unreadable(f"{name}: no readable image: {error}") from error
    return shown, (*frames, *((TRANSPARENT,) if clear else ()))


@final
class _Refused(ValueError):
    """A whole picture that is not shown, and why."""


def bounded(size: tuple[int, int]) -> None:
    """Raises ValueError for a picture of more pixels than Pillow's bound."""
    if Image.MAX_IMAGE_PIXELS is not None and size[0] * size[1] > Image.MAX_IMAGE_PIXELS:
        raise _Refused(
            f"it is {size[0]} x {size[1]} pixels, more than {Image.MAX_IMAGE_PIXELS} "
            "(PIL.Image.MAX_IMAGE_PIXELS): make it smaller, or take it away"
        )


def turn(image: Image.Image) -> None:
    """Upright, in place, as its EXIF says; left as it is where there is none, or none that can be read."""
    with suppress(*BROKEN, Warning):
        ImageOps.exif_transpose(image, in_place=True)


def colours(image: Image.Image) -> tuple[Image.Image, bool]:
    """A picture of any mode in RGB, and whether any of it is transparent: that is laid on white. Raises ValueError for
    a mode whose numbers have no white."""
    alpha = None
    if image.mode in (*SIXTEEN, "I", "F"):
        values, white = deep(image)
        if (key := image.info.get("transparency")) is not None:
            alpha = Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))
        image = Image.fromarray(((values * 255 + white // 2) // white).astype(np.uint8))
    elif image.mode == "La":
        image = image.convert("LA")
    if alpha is None and (image.has_transparency_data or image.mode == "RGBa"):
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    shown = image.convert("RGB")
    if alpha is None or alpha.getextrema()[0] == 255:
        return shown, False
    return Image.composite(shown, Image.new("RGB", shown.size, "white"), alpha), True


def deep(image: Image.Image) -> tuple[np.ndarray, int]:
    """The numbers of a grey picture of more than 8 bits, int64 from 0 for black, and the one that is white."""
    tags = getattr(image, "tag_v2", {})
    if image.mode not in SIXTEEN and (image.mode, image.format) not in (("I", "PNG"), ("I", "PPM")):
        raise _Refused(f"nothing tells which number is white (mode {image.mode}): save it with 8 or 16 bits a pixel")
    white = 2 ** int(tags.get(BITS, (16,))[0]) - 1
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > white:
        raise _Refused(f"its numbers reach from {values.min()} to {values.max()}, beyond {white}: save it anew")
    return (white - values if tags.get(PHOTOMETRIC) == 0 else values), white
