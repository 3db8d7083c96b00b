"""What brings pictures to what a classifier is shown: the image processor of a model, or one made of flags."""

import argparse
import math
from collections.abc import Sequence
from typing import Any, Final

from PIL import Image
from transformers import AutoImageProcessor, BitImageProcessorPil
from transformers.image_processing_backends import PilBackend

from zsaq.foreign import UNMADE
from zsaq.script import given

MEAN: Final = (0.485, 0.456, 0.406)
DEVIATION: Final = (0.229, 0.224, 0.225)


def check_sized(flags: argparse.ArgumentParser, argv: Sequence[str] | None, args: argparse.Namespace) -> None:
    """Leave with an error for flags of a processor of our own making that make none, and where the model's own is
    taken."""
    if args.size is None:
        if lone := given(flags, argv, ("resize", "mean", "std")):
            flags.error(
                f"{', '.join(lone)} without --size: the model's own image processor is taken; give both, or none"
            )
        return
    try:
        sized(args.size, args.resize, args.mean or MEAN, args.std or DEVIATION)
    except ValueError as error:
        flags.error(str(error))


def normalises(mean: Any, deviation: Any) -> bool:
    """Whether pixels can be normalised so: by finite numbers, one or one a channel, deviations above 0."""
    means, deviations = (list(value) if isinstance(value, Sequence) else [value] for value in (mean, deviation))
    finite = all(isinstance(n, int | float) and math.isfinite(n) for n in (*means, *deviations))
    return finite and all(number > 0 for number in deviations)


def sized(size: int, resize: int | None, mean: Sequence[float], deviation: Sequence[float]) -> BitImageProcessorPil:
    """Brings the shorter side to `resize` pixels (None: `size`), bilinear, cuts the middle out and normalises it.

    Raises ValueError for a middle larger than the picture, and for what pixels cannot be normalised with.
    """
    if resize is not None and resize < size:
        raise ValueError(f"--resize {resize} is below --size {size}, and the rest would be black: give {size} or more")
    if len(mean) != len(deviation) or not normalises(mean, deviation):
        raise ValueError(
            f"--mean {' '.join(map(str, mean))} and --std {' '.join(map(str, deviation))}: give finite numbers, as "
            "many of both, and those of --std above 0"
        )
    return BitImageProcessorPil(
        size={"shortest_edge": resize or size}, crop_size={"height": size, "width": size},
        resample=Image.Resampling.BILINEAR, image_mean=list(mean), image_std=list(deviation),
    )  # fmt: skip


def processor_of(names: Sequence[str], size: int | None, resize: int | None, mean: Any, deviation: Any) -> PilBackend:
    """The PIL image processor of the first folder or id that has one; with `size`, one of our own making (`sized`).

    Raises ValueError as `sized` does, if none has one, or none that works with PIL, and for one that divides by what is
    no deviation.
    """
    if size is not None:
        return sized(size, resize, mean, deviation)
    for name in names:
        try:
            processor = AutoImageProcessor.from_pretrained(name, backend="pil", trust_remote_code=False)
        except (OSError, ValueError, *UNMADE):
            continue
        if not isinstance(processor, PilBackend):
            raise ValueError(f"{name} has a {type(processor).__name__}, which does not work with PIL: give --size")
        mean, deviation = (getattr(processor, part, None) for part in ("image_mean", "image_std"))
        if getattr(processor, "do_normalize", None) and not normalises(mean, deviation):
            raise ValueError(
                f"{name} has an image processor with the mean {mean} and the deviation {deviation}, which cannot be: "
                "correct them in its preprocessor_config.json, or give --size"
            )
        return processor
    raise ValueError(f"{' and '.join(names)}: no image processor there; give --size, and --mean and --std if need be")
