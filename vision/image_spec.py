"""What a classifier is shown: the spec that synthetic images are made in."""

from dataclasses import dataclass
from typing import Final, final

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
