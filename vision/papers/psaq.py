"""PSAQ-ViT (Li et al. 2022, arXiv 2203.02250): images whose patches differ as those of real ones do, for calibration.

A vision transformer has no BatchNorm statistics to match. But its attention tells patches of a real image apart and not
those of noise: pixels are trained until the entropy of patch similarities is high, each image has a class, and
neighbours vary as little as in photos. One pass over the images then sets all ranges, as published, or rounding and
steps are learned on them (`psaq_learned`).
"""

import math
from pathlib import Path
from typing import TypeVar, final

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from zsaq.quant.config import QuantConfig
from zsaq.quant.layers import QuantConv2d
from zsaq.quant.model import quantize_model
from zsaq.quant.quantizer import Quantizer
from zsaq.quant.ranges import Static
from zsaq.train.amounts import check_counts
from zsaq.train.loop import Loop
from zsaq.train.objectives import Objective, Sum
from zsaq.train.pair import Batch, Pair
from zsaq.train.randomness import generator
from zsaq.train.reconstruction import reconstruct, scaled_rate
from zsaq.train.synthesis import Source, Synthesizer
from zsaq.train.trainer import calibrate
from zsaq.vision.image_spec import DEVIATION, MEAN, ImageSpec
from zsaq.vision.losses.patches import PatchSimilarityEntropy
from zsaq.vision.losses.priors import TeacherCE
from zsaq.vision.losses.smoothness import TotalVariation
from zsaq.vision.models import attentions, blocks
from zsaq.vision.pictures import album
from zsaq.vision.sources.crops import minibatches
from zsaq.vision.sources.pixels import Pixels, uniform_labels

Model = TypeVar("Model", bound=nn.Module)


@final
class Jittered(Source):
    """All images of `source`, rolled by one random offset (the same in both axes) of at most `reach` pixels, and
    mirrored half the time: one draw for the whole batch. The source itself keeps the images as they are."""

    def __init__(self, source: Pixels, reach: int, seed: int = 0) -> None:
        super().__init__()
        self.source, self.reach, self.rng = source, reach, generator(seed)

    def forward(self) -> Batch:
        batch = self.source()
        offset = int(torch.randint(-self.reach, self.reach + 1, (), generator=self.rng))
        pixels = batch["pixel_values"].roll((offset, offset), (2, 3))
        mirrored = torch.rand((), generator=self.rng) < 0.5
        return {**batch, "pixel_values": pixels.flip(3) if mirrored else pixels}


@final
class VariationOf(Objective):
    """|TotalVariation - wanted|: as rough as photos, neither flat nor noisy."""

    def __init__(self, wanted: float) -> None:
        self.wanted, self.variation = wanted, TotalVariation()

    def __call__(self, pair: Pair) -> Tensor:
        return (self.variation(pair) - self.wanted).abs()


def photographic(images: int, spec: ImageSpec, seed: int = 0) -> float:
    """The total variation asked of a batch: U(2500, 3000) for 32 images of 224 pixels, as released.

    Norms grow with the root of the number of entries, so other batches get their share: sqrt(images / 32) * size / 224.
    """
    released = 2500 + 500 * float(torch.rand((), generator=torch.Generator().manual_seed(seed)))
    return released * math.sqrt(images / 32) * spec.size / 224


def prior(teacher: nn.Module, images: int, spec: ImageSpec, seed: int = 0) -> Sum:
    """What makes a sample good: patch-similarity entropy, one class an image, the variation of photos."""
    wanted = photographic(images, spec, seed)
    return PatchSimilarityEntropy(attentions(teacher)) + 1.0 * TeacherCE() + 0.05 * VariationOf(wanted)


def valid(spec: ImageSpec, mean: tuple[float, ...], deviation: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """The normalised values of black and white, each [channels, 1, 1]. Raises ValueError for other lengths and for
    what no pixel can be normalised by."""
    fits = len(mean) == len(deviation) == spec.channels
    if not fits or not all(map(math.isfinite, mean)) or not all(0 < each < math.inf for each in deviation):
        raise ValueError(
            f"mean is {mean}, deviation {deviation}; give one number for each of {spec.channels} channels, deviations "
            "above 0, or the teacher's image processor, which tells them"
        )
    shift, scale = (torch.tensor(v)[:, None, None] for v in (mean, deviation))
    return -shift / scale, (1 - shift) / scale


def warm_cosine(step: int, steps: int) -> float:
    """Share of the learning rate at `step` (from 0): linear over the first fifth of the steps, then a cosine to 0."""
    warm = steps // 5
    if step < warm:
        return (step + 1) / warm
    return (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))) / 2


def psaq_images(
    teacher: nn.Module, spec: ImageSpec, *, images: int = 32, steps: int = 1000, lr: float = 0.2, seed: int = 0,
    mean: tuple[float, ...] = MEAN, deviation: tuple[float, ...] = DEVIATION, folder: Path | None = None,
) -> Batch:  # fmt: skip
    """`images` images with a random class each: pixel_values float [images, C, S, S], labels int64 [images].

    Two rounds of steps / 2, in the second the images are rolled twice as far; in each Adam anew (betas 0.5, 0.9) with a
    fifth of its steps to warm up to `lr` and a cosine to 0; after each step pixels are clamped to what a picture can
    hold. Defaults are the released ones (lr: of DeiT; Swin 0.25). `mean` and `deviation` are the teacher's
    normalisation; `folder` is where pictures go. Works on the teacher's device.

    Raises ValueError for a teacher without attention, fewer than 2 steps, and a loss that is not finite.
    """
    if steps < 2:
        raise ValueError(f"steps is {steps}; give at least 2, one for each round")
    source = Pixels(images, spec, uniform_labels(images, spec, seed), seed=seed)
    source.to(next(teacher.parameters()).device)
    low, high = (bound.to(source.pixels.device) for bound in valid(spec, mean, deviation))
    objective, losses = prior(teacher, images, spec, seed), []
    for turn, share in enumerate((steps // 2, steps - steps // 2), 1):
        optimizer = torch.optim.Adam([source.pixels], lr, betas=(0.5, 0.9))
        schedule = LambdaLR(optimizer, lambda step: warm_cosine(step, share))
        jittered = Jittered(source, round(turn * spec.size * 15 / 224), seed + turn)
        synthesizer = Synthesizer(
            jittered, objective, optimizer, teacher, scheduler=schedule, stage=f"psaq, round {turn}"
        )
        synthesizer.finish(share, lambda: source.pixels.data.clamp_(low, high))
        losses += synthesizer.losses
    batch = {name: value.detach() for name, value in source().items()}
    if folder is not None:
        album(batch, folder, losses)
    return batch


def psaq_learned(
    teacher: Model, config: QuantConfig, spec: ImageSpec, images: Batch, *, steps: int = 1000, batch_size: int = 32,
    seed: int = 0, mean: tuple[float, ...] = MEAN, deviation: tuple[float, ...] = DEVIATION, loop: Loop | None = None,
    folder: Path | None = None,
) -> Model:  # fmt: skip
    """A student whose rounding, scales and steps are learned block by block on `images`: what makes W4A4 usable.

    Min-max ranges of 4 bits waste most levels on a few large activations. Kim et al. 2025 (SARDFQ, arXiv 2412.16553)
    reconstruct on 32 synthetic images too. Attention stays in floats unless the configuration has a grid for what its
    products take, whose ranges are then those of the images, not learned; the paper rounds all but the probabilities.

    The range of the image itself is not learned: black and white are known, and images that were made hold less of
    both than photos do, so that a range that fits them cuts photos off. Bits learn at Genie-M's rate (`scaled_rate`).
    Both were chosen by the scores of one case, a ViT on handwritten digits at W4A4, which is therefore no clean
    zero-shot result. Raises ValueError as `zsaq.reconstruct` does, and for a `mean` and `deviation` that do not fit the
    spec.
    """
    check_counts(steps=steps, batch_size=batch_size)
    loop = loop or Loop()
    black, white = valid(spec, mean, deviation)
    layers = blocks(teacher)
    student = calibrate(quantize_model(teacher, config), minibatches(images, 64), loop.accelerator)
    first = student.get_submodule(layers[0][0])
    shown = first.input_quantizer if isinstance(first, QuantConv2d) else None
    known: list[Quantizer] = []
    if shown is not None and isinstance(ranges := shown.ranges, Static):
        ranges.hold(black.min().view(1, 1), white.max().view(1, 1))
        known.append(shown)
    return reconstruct(
        student, teacher, minibatches(images, 64), layers,
        steps=steps, batch_size=batch_size, lr_bits=scaled_rate(1e-3, steps), fixed=known, seed=seed, loop=loop,
    )  # fmt: skip
