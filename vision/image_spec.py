"""What a classifier is shown: the spec that synthetic images are made in."""

from dataclasses import dataclass
from typing import Any, Final, final

# ImageNet's normalisation, of each channel.
MEAN: Final = (0.485, 0.456, 0.406)
DEVIATION: Final = (0.229, 0.224, 0.225)


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


def shown_size(processor: Any) -> int:
    """The side in pixels of what an image processor of transformers makes of a square picture."""
    from PIL import Image  # an extra, as image processors are

    blank = Image.new("RGB", (256, 256))
    return processor(images=blank, return_tensors="pt")["pixel_values"].shape[-1]


def normalisation(processor: Any, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation that an image processor normalises each channel by; ImageNet's for None."""
    if processor is None:
        return MEAN[:channels], DEVIATION[:channels]
    settings = processor.to_dict()
    if not settings["do_normalize"]:
        return (0.0,) * channels, (1.0,) * channels
    return tuple(settings["image_mean"]), tuple(settings["image_std"])
