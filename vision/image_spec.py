"""What a classifier is shown: the spec that synthetic images are made in."""

from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor

# ImageNet's normalisation, of each channel.
MEAN: Final = (0.485, 0.456, 0.406)
DEVIATION: Final = (0.229, 0.224, 0.225)
LAST: Final[dict[str, Any]] = {"input_data_format": "channels_last"}


@final
@dataclass(frozen=True)
class ImageSpec:
    """Images [channels, size, size] and the number of classes. Raises ValueError for a number below 1."""

    classes: int
    size: int
    channels: int = 3

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} is {value!r}; give an integer of at least 1")


def shown_size(processor: Any, channels: int = 3) -> int:
    """The side in pixels of what an image processor of transformers makes of a square picture. Raises ValueError for
    one that makes no image of it."""
    return shown(processor, 0, channels, ", or an ImageSpec").shape[-1]


def normalisation(processor: Any, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation by which an image processor brings pixels of 0 to 1 to what it puts out, for each channel;
    ImageNet's for None.

    They are those of a black and a white picture, to six digits: a processor may scale pixels by more than its mean
    and deviation, or by none. Raises ValueError where it makes no number of them, or one that is not lighter.
    """
    if processor is None:
        return MEAN[:channels], DEVIATION[:channels]
    ends = [shown(processor, light, channels) for light in (0, 255)]
    black, white = ([float(value) for value in end[:, end.shape[1] // 2, end.shape[2] // 2]] for end in ends)
    if len(black) != channels or not all(0 < high - low < float("inf") for low, high in zip(black, white, strict=True)):
        raise ValueError(
            f"{type(processor).__name__} makes {black} of a black picture and {white} of a white one; images have "
            f"{channels} channels, of finite numbers that rise with light: give the processor of the model's images"
        )
    deviation = [1 / (high - low) for low, high in zip(black, white, strict=True)]
    mean = [-low * each + 0.0 for low, each in zip(black, deviation, strict=True)]
    return six_digits(mean), six_digits(deviation)


def as_processed(pixels: Tensor, processor: Any) -> Tensor:
    """Images [B, C, H, W] that were drawn in units of ImageNet's normalisation, in those of an image processor: made
    pictures of 0 to 1, which are then normalised as it does.

    Without a processor, or with one that has ImageNet's mean and deviation, they are what they were. Where there are
    other channels than 3, of which ImageNet tells nothing, each has the mean of its three. Raises ValueError as
    `normalisation` does.
    """
    channels = pixels.shape[1]
    drawn = (MEAN, DEVIATION) if channels == 3 else tuple((sum(each) / 3,) * channels for each in (MEAN, DEVIATION))
    if processor is None or (wanted := normalisation(processor, channels)) == drawn:
        return pixels
    (mean, deviation), (shift, scale) = (
        (torch.tensor(each, dtype=pixels.dtype)[:, None, None] for each in numbers) for numbers in (drawn, wanted)
    )
    return (pixels * deviation + mean - shift) / scale


def six_digits(values: list[float]) -> tuple[float, ...]:
    """As many as float32 tells of a quotient."""
    return tuple(float(f"{value:.6g}") for value in values)


def shown(processor: Any, light: int, channels: int, instead: str = "") -> Any:
    """What a processor makes of a square picture that is all of one `light`, [channels, height, width]. Raises
    ValueError for what it cannot take, and for what is no image; `instead`: what else may be given."""
    from PIL import Image  # an extra, as image processors are

    if mode := {1: "L", 3: "RGB", 4: "RGBA"}.get(channels):
        picture, how = Image.new(mode, (256, 256), (light,) * channels), dict[str, Any]()
    else:
        picture, how = torch.full((256, 256, channels), light, dtype=torch.uint8).numpy(), LAST
    try:
        images = processor(images=picture, return_tensors="pt", **how)["pixel_values"]
        if images.ndim != 4:
            raise ValueError(f"it answers {list(images.shape)}")
    except Exception as error:  # of whoever wrote it
        raise ValueError(
            f"{type(processor).__name__} makes no image of a picture of {channels} channels ({error}): give the "
            f"processor of the model's images{instead}"
        ) from error
    return images[0]
