"""What a vision method works on: a teacher, the images that it is shown, and synthetic ones that methods share."""

from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, final

from torch import Tensor, nn

from zsaq.train.clocks import read
from zsaq.train.logging import say
from zsaq.train.pair import Batch
from zsaq.train.stages import part
from zsaq.train.synthesis import process_index
from zsaq.vision.classifier import answered_as, class_name, classifier
from zsaq.vision.image_spec import DEVIATION, MEAN, ImageSpec, as_processed, normalisation, shown_size

T = TypeVar("T")


@final
@dataclass
class ImageJob:
    """A classifier of images, and what may stand beside it. A plain module is wrapped as `classifier` does.

    `processor`: of the images, transformers', by which they are normalised; None for ImageNet's normalisation,
    by which noise is of variance 1.
    `pictures`: the folder where pictures of what is synthesized go. `real()`: unlabelled real images [N, C, S, S], not
    read before a row asks that is not zero-shot. `given`: images of one's own, a batch or an iterable of batches.
    `cache`: synthetic images by what made them, so that methods and bit widths that share them compare on the same;
    `costs`: the seconds that these took, and what they read, for each row that reads them (`zsaq.train.clocks`).
    Raises ValueError as `check_spec` does.
    """

    teacher: nn.Module
    spec: ImageSpec
    processor: Any = None
    pictures: Path | None = None
    real: Callable[[], Tensor] | None = None
    given: Batch | Iterable[Batch] | None = None
    cache: dict[Hashable, Any] = field(default_factory=dict, repr=False)
    costs: dict[Hashable, dict[str, float]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.teacher = classifier(self.teacher)
        check_spec(self.teacher, self.spec)
        with suppress(ValueError, ImportError):  # of a processor that makes no image, which not every method asks
            side = self.spec.size if self.processor is None else shown_size(self.processor, self.spec.channels)
            if side != self.spec.size and process_index() == 0:
                say(f"spec says images of {self.spec.size} pixels, and the processor makes them of {side}: spec counts")

    @cached_property
    def normalised(self) -> dict[str, tuple[float, ...]]:
        """Mean and deviation, a number for each channel, for those who ask; told where they are assumed. Raises
        ValueError as `normalisation`."""
        if self.processor is None and process_index() == 0:
            say(
                f"no image processor: black and white are taken to be ImageNet's, of mean {MEAN} and deviation "
                f"{DEVIATION}; if the teacher's are others, give processor=, or its preprocessor_config.json beside it"
            )
        mean, deviation = normalisation(self.processor, self.spec.channels)
        return {"mean": mean, "deviation": deviation}

    def processed(self, pixels: Tensor) -> Batch:
        """Noise [B, C, S, S] of variance 1 as the teacher's pictures are (`as_processed`)."""
        return {"pixel_values": as_processed(pixels, self.processor)}

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` makes, the first time; then the same again."""
        if key not in self.cache:
            with part(name := f"images {key}", anywhere=True) as at:  # whichever method comes first
                self.cache[key] = make()
            self.costs[key] = at.clock.costs(name)
        read(self.costs.get(key, {}))
        return self.cache[key]

    def folder(self, name: str, seed: int) -> Path | None:
        """Where the pictures of this source or method go."""
        return self.pictures and self.pictures / f"{name}-{seed}"


def check_spec(teacher: nn.Module, spec: ImageSpec) -> None:
    """Raises ValueError for a teacher that cannot take an empty image of the spec, or answers other classes."""
    out = answered_as(teacher, spec)
    if out.headless is None and out.answer.shape[1:] != (spec.classes,):
        raise ValueError(
            f"{class_name(teacher)} answers {tuple(out.answer.shape)} to one image where the spec has {spec.classes} "
            "classes; give an ImageSpec with as many as it answers"
        )
