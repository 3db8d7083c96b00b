"""Images optimised from noise, batch by batch: the source of the methods that fine-tune on crops of them."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from zsaq.train.amounts import check_counts
from zsaq.train.objectives import Objective
from zsaq.train.pair import Batch
from zsaq.train.synthesis import Synthesizer, numbered, seed_of
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.pictures import album
from zsaq.vision.sources.pixels import Cropped, Pixels, uniform_labels


def optimised_images(
    teacher: nn.Module, objective: Objective, spec: ImageSpec, *, images: int = 5120, batch_size: int = 256,
    steps: int = 1000, lr: float = 0.5, least: float = 1e-4, patience: int = 50, crops: float = 0.0,
    scale: tuple[float, float] = (0.5, 1.0), labels: Tensor | None = None, seed: int = 0,
    finished: Callable[[Batch], object] | None = None, folder: Path | None = None, stage: str = "images",
) -> Batch:  # fmt: skip
    """`images` images from N(0, 1), `batch_size` at a time, each batch optimised alone; the optimizer of IntraQ.

    Adam for `steps` steps a batch, the learning rate / 10 whenever the loss has not fallen for `patience` steps, not
    below `least`. Shorter runs keep the published patience, and so, as a rule, the rate: the loss rises at first, for
    10 steps or so in a run of any length, and 0.5 a step is what brings it down again. With HAST's objective for
    CIFAR-10 (ResNet-20, 64 images, 100 steps) it ends at 1.0; with a patience of 5, 50's share of the steps, at 112;
    with the rate / 10 after 70 and 90 steps at 1.6, with a cosine at 3.0, with 0.1 from the start at 1.8.

    In a share `crops` of the steps the objective sees random crops of `scale` (IntraQ's local object reinforcement).
    `labels` int64 [images], by default uniformly drawn. `finished` is told each batch when it is done;
    `folder` is where pictures go. Answers pixel_values float [images, C, S, S] and labels, on the teacher's device.
    Raises ValueError for numbers below 1, labels of another length and losses that are not finite.
    """
    check_counts(images=images, batch_size=batch_size, steps=steps, patience=patience)
    labels = uniform_labels(images, spec, seed) if labels is None else labels
    if len(labels) != images:
        raise ValueError(f"images is {images}, with {len(labels)} labels; give a label for each image")
    batches: list[Batch] = []
    losses: list[float] = []
    parts = labels.split(batch_size)
    for turn, part in enumerate(parts):
        pixels = Pixels(len(part), spec, part, seed=seed_of(seed, turn))
        pixels.to(next(teacher.parameters()).device)
        source = Cropped(pixels, scale, crops, seed_of(seed, turn)) if crops else pixels
        adam = torch.optim.Adam([pixels.pixels], lr)
        plateau = ReduceLROnPlateau(adam, factor=0.1, patience=patience, min_lr=least)
        at = numbered(stage, turn, len(parts))
        synthesizer = Synthesizer(source, objective, adam, teacher, scheduler=plateau, stage=at)
        synthesizer.finish(steps)
        batches.append({name: value.detach() for name, value in pixels().items()})
        losses += synthesizer.losses
        if finished is not None:
            finished(batches[-1])
    batch = {name: torch.cat([part[name] for part in batches]) for name in batches[0]}
    if folder is not None:
        album(batch, folder, losses)
    return batch
