"""What was synthesized, to look at: a grid of images, their spectrum and the loss curves, as PNG.

Pixels are in normalised space, where images may leave what a camera can see; so each image is stretched for display
from its own smallest value to its largest, and colours cannot be compared between images. Needs matplotlib, the extra
`plot`; it is imported when a picture is drawn and never touches pyplot's state.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zsaq.atomic import atomic_file
from zsaq.train.pair import Batch

NO_LOSSES = {"step", "seconds", "lr"}  # among the numbers of a log's line


def grid(pixels: Batch | Tensor, path: Path, *, filtered: Batch | Tensor | None = None, limit: int = 64) -> Path:
    """The first `limit` images [B, C, H, W]; with `filtered` of the same shape, before and after in pairs. Of channels
    that are neither 1 nor 3, which no screen shows, their mean.

    Returns `path`. Raises ValueError for other shapes, values that are not finite, and where matplotlib is missing.
    """
    shown = _images(pixels)[:limit]
    columns = math.ceil(math.sqrt(len(shown)))
    title = "each image stretched to its own range"
    if filtered is not None:
        after = _images(filtered)[:limit]
        if after.shape != shown.shape:
            raise ValueError(f"filtered is {tuple(after.shape)}, pixels {tuple(shown.shape)}; give the same images")
        shown = torch.stack([shown, after], 1).flatten(0, 1)
        columns, title = 2 * math.ceil(columns / 2), f"pairs: before and after the filter; {title}"
    mosaic = _mosaic(_stretched(shown), columns)
    figure = _figure(6.0, 6.0 * mosaic.shape[0] / mosaic.shape[1] + 0.3)
    axis: Any = figure.subplots()
    axis.imshow(mosaic.numpy(), interpolation="nearest")
    axis.set_axis_off()
    axis.set_title(title, fontsize=7)
    return _write(figure, path)


def radial_power(pixels: Batch | Tensor) -> Tensor:
    """Mean power of images [B, C, H, W] at each distance from the spectrum's centre, float32 [min(H, W) // 2 + 1].

    Entry r holds the frequencies whose distance, in cycles per image, rounds to r; mean over images and channels.
    """
    power = _power(_images(pixels))
    height, width = power.shape
    rows, columns = torch.arange(height) - height // 2, torch.arange(width) - width // 2
    distance = torch.hypot(*torch.meshgrid(rows.float(), columns.float(), indexing="ij")).round().long()
    return torch.stack([power[distance == r].mean() for r in range(min(height, width) // 2 + 1)])


def spectrum(pixels: Batch | Tensor, path: Path, *, filtered: Batch | Tensor | None = None) -> Path:
    """Power spectrum of images [B, C, H, W], mean over images and channels: the plane, and its profile by frequency.

    The mean of each image and channel is taken out first; powers are shown as log10. Returns `path`. Raises
    ValueError as `grid` does.
    """
    named = {"images": _images(pixels)} | ({} if filtered is None else {"filtered": _images(filtered)})
    figure = _figure(3.2 * (len(named) + 1), 3.0)
    *planes, profile = figure.subplots(1, len(named) + 1)
    for axis, (name, images) in zip(planes, named.items(), strict=True):
        plane = _power(images).clamp_min(1e-12).log10()
        plane[plane.shape[0] // 2, plane.shape[1] // 2] = math.nan  # the mean, which was taken out
        axis.imshow(plane.numpy(), cmap="viridis")
        axis.set_axis_off()
        axis.set_title(f"{name}: log10 power", fontsize=8)
    for name, images in named.items():
        power = radial_power(images)[1:].clamp_min(1e-12).log10()
        profile.plot(range(1, len(power) + 1), power.tolist(), label=name, linewidth=1)
    profile.set_xlabel("cycles per image", fontsize=8)
    profile.set_title("log10 power by frequency", fontsize=8)
    profile.legend(fontsize=7)
    return _write(figure, path)


def curve_panels(lines: Sequence[Mapping[str, float | None]], path: Path) -> Path:
    """A panel for every number that a stage tells at its steps; a log's JSON lines fit as they are.

    Without a "step" a line stands at its place, from 1; None and values that are not finite leave a gap. Returns
    `path`. Raises ValueError where there is nothing to draw or matplotlib is missing.
    """
    names = list(dict.fromkeys(name for line in lines for name in line if name not in NO_LOSSES))
    if not names:
        raise ValueError(f"the {len(lines)} lines hold no losses; give one mapping from names to numbers a step")
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure = _figure(4.0 * columns, 2.6 * rows)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, name in zip(axes, names, strict=False):
        values = [line.get(name) for line in lines]
        steps = [line.get("step") or place for place, line in enumerate(lines, 1)]
        axis.plot(steps, [math.nan if v is None or not math.isfinite(v) else v for v in values], linewidth=1)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("step", fontsize=8)
    for axis in axes[len(names) :]:
        axis.remove()
    return _write(figure, path)


def album(
    images: Batch | Tensor, folder: Path, losses: Sequence[float], *, filtered: Batch | Tensor | None = None
) -> list[Path]:
    """What a synthesis writes into `folder`: images.png, spectrum.png and losses.png (the loss of every step).

    Returns the paths. Raises ValueError as `grid` and `curve_panels` do.
    """
    return [
        grid(images, folder / "images.png", filtered=filtered),
        spectrum(images, folder / "spectrum.png", filtered=filtered),
        curve_panels([{"loss": loss} for loss in losses], folder / "losses.png"),
    ]


def _images(pixels: Batch | Tensor) -> Tensor:
    """Pixels as float32 on the CPU. Raises ValueError for what is no batch of images."""
    images = (pixels if isinstance(pixels, Tensor) else pixels["pixel_values"]).detach().float().cpu()
    if images.ndim != 4 or not images.numel():
        raise ValueError(f"pixels are {tuple(images.shape)}; give [B, C, H, W], each at least 1")
    if not images.isfinite().all():
        raise ValueError("some pixels are not finite; the synthesis went wrong, lower its learning rate")
    return images


def _stretched(images: Tensor) -> Tensor:
    """Each image from its smallest value to its largest, in [0, 1] and 1 or 3 channels; a flat image is black."""
    if images.shape[1] not in (1, 3):
        images = images.mean(1, keepdim=True)
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    return (images - low) / (high - low).clamp_min(1e-12)


def _mosaic(images: Tensor, columns: int) -> Tensor:
    """[rows * (H + 1), columns * (W + 1), 3]: images row by row, white between them and at the end."""
    padded = torch.nn.functional.pad(images.expand(-1, 3, -1, -1), (0, 1, 0, 1), value=1.0)
    blanks = torch.ones(-len(padded) % columns, *padded.shape[1:])
    _, channels, height, width = padded.shape
    rows = torch.cat([padded, blanks]).view(-1, columns, channels, height, width)
    return rows.permute(0, 3, 1, 4, 2).reshape(-1, columns * width, channels)


def _power(images: Tensor) -> Tensor:
    """Mean squared magnitude of the shifted spectrum [H, W], per pixel, without the images' means."""
    centred = images - images.mean((2, 3), keepdim=True)
    return torch.fft.fftshift(torch.fft.fft2(centred, norm="ortho"), dim=(-2, -1)).abs().square().mean((0, 1))


def _figure(width: float, height: float) -> Any:
    """A figure of that many inches that belongs to no window."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("pictures need matplotlib: pip install 'zsaq[plot]', or ask for no folder") from None
    return Figure(figsize=(width, height), layout="constrained")


def _write(figure: Any, path: Path) -> Path:
    """A PNG, whole or not at all."""
    with atomic_file(path) as partial:
        figure.savefig(partial, format="png", dpi=120)
    return path
