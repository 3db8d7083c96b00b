"""The images of the vision tables: synthetic ones by the method that makes them, noise, and the oracle's."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from vision_job import VisionJob

from zsaq import Batch
from zsaq.vision.papers.dsg import dsg_images
from zsaq.vision.papers.genie import sources, train
from zsaq.vision.papers.hast import hast_images
from zsaq.vision.papers.intraq import intraq_images
from zsaq.vision.papers.plf import plf_images
from zsaq.vision.papers.psaq import psaq_images
from zsaq.vision.papers.synq import synq_images
from zsaq.vision.papers.zeroq import zeroq_images
from zsaq.vision.published import published
from zsaq.vision.sources.swing import Latents


@dataclass(frozen=True)
class VisionBudget:
    """What a run may take.

    `images` made in `synthesize` steps each, or a generator that takes `warmup` steps alone; `steps` student steps of
    `batch` images (`unit_steps` a block where blocks are reconstructed), at the learning rate that `published` has for
    the method and the size of the images, times `speed`, for budgets far below the published.
    """

    images: int = 128
    image_steps: int = 200
    warmup: int = 600
    steps: int = 200
    unit_steps: int = 200
    batch: int = 64
    speed: float = 1.0
    pictures: Path | None = None


def shared(job: VisionJob, name: str, budget: VisionBudget, seed: int) -> Batch:
    """Synthetic images by the name of the method that makes them."""
    n, steps, teacher, spec = budget.images, budget.image_steps, job.teacher, job.spec
    folder = budget.pictures and budget.pictures / f"{name}-{seed}"
    direct: dict[str, Any] = {"images": n, "batch_size": min(n, 128), "steps": steps, "seed": seed, "folder": folder}
    make: dict[str, Callable[[], Batch]] = {
        "noise": lambda: gaussian(job, n, seed),
        "zeroq": lambda: zeroq_images(teacher, spec, n=n, steps=steps, seed=seed, folder=folder),
        "dsg": lambda: dsg_images(teacher, spec, n=n, steps=steps, seed=seed, folder=folder),
        # Several batches: IntraQ keeps each away from the centres of those before it.
        "intraq": lambda: intraq_images(
            teacher, spec, **direct | {"batch_size": max(1, n // 4)}, **published(intraq_images, spec)
        ),
        "hast": lambda: hast_images(teacher, spec, **direct, **published(hast_images, spec)),
        "synq": lambda: synq_images(teacher, spec, **direct, **published(synq_images, spec), centre_steps=steps),
        "plf": lambda: plf_images(teacher, spec, **direct, **published(plf_images, spec)),
        "genie": lambda: genies(job, budget, seed)[1],
        "psaq": lambda: psaq_images(
            teacher, spec, images=n, steps=steps, seed=seed, mean=job.mean, deviation=job.deviation, folder=folder
        ),
        "real": lambda: real(job, n, seed),
    }
    return job.once(name, seed, make[name])


def genies(job: VisionJob, budget: VisionBudget, seed: int) -> tuple[list[Latents], Batch]:
    """Genie's sources, trained, and their images."""

    def make() -> tuple[list[Latents], Batch]:
        made = sources(budget.images, 128, job.spec, seed)
        folder = budget.pictures and budget.pictures / f"genie-{seed}"
        return made, train(made, job.teacher, budget.image_steps, seed, folder)

    return job.once("genie's sources", seed, make)


def gaussian(job: VisionJob, n: int, seed: int) -> Batch:
    shape = (n, job.spec.channels, job.spec.size, job.spec.size)
    return {"pixel_values": torch.randn(shape, generator=torch.Generator().manual_seed(seed))}


def real(job: VisionJob, n: int, seed: int) -> Batch:
    """As many real images as the others make: the oracle's. Not zero-shot."""
    if job.real is None:
        raise ValueError(f"{job.name} has no real images for the oracle; give --real")
    pixels = job.real()
    return {"pixel_values": pixels[torch.randperm(len(pixels), generator=torch.Generator().manual_seed(seed))[:n]]}
