"""The rows of the vision tables: every method on the same job, with the same budget."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from vision_job import VisionJob

from zsaq import KL, Batch, Loop, QuantConfig, calibrate, quantize_model
from zsaq.synthesis import Source
from zsaq.vision.adadfq import adadfq
from zsaq.vision.adasg import adasg
from zsaq.vision.adversarial import fit
from zsaq.vision.ait import ait
from zsaq.vision.arc import CIFAR10, Searched, arc
from zsaq.vision.direct import parts
from zsaq.vision.dsg import dsg_images
from zsaq.vision.gdfq import gdfq, play, sgd
from zsaq.vision.generators import Conditional
from zsaq.vision.genie import genie_images, genie_m
from zsaq.vision.hast import hast, hast_images
from zsaq.vision.intraq import intraq, intraq_images
from zsaq.vision.models import head
from zsaq.vision.plf import plf, plf_images
from zsaq.vision.psaq import psaq_images, psaq_learned
from zsaq.vision.qimera import Superposed, qimera
from zsaq.vision.sadag import sadag_images
from zsaq.vision.synq import filtered, synq, synq_images
from zsaq.vision.texq import texq
from zsaq.vision.zeroq import zeroq_images


@dataclass(frozen=True)
class VisionBudget:
    """What a run may take.

    `images` made in `dream` steps each, or a generator that takes `warmup` steps alone; `steps` student steps of
    `batch` images (`unit_steps` a block where blocks are reconstructed), at the method's published learning rate times
    `speed`, for budgets far below the published.
    """

    images: int = 128
    dream: int = 200
    warmup: int = 600
    steps: int = 200
    unit_steps: int = 200
    batch: int = 64
    speed: float = 1.0
    pictures: Path | None = None


Method = Callable[[VisionJob, QuantConfig, VisionBudget, int, Loop], nn.Module]


def shared(job: VisionJob, name: str, budget: VisionBudget, seed: int) -> Batch:
    """Synthetic images by the name of the method that makes them."""
    n, steps, teacher, frame = budget.images, budget.dream, job.teacher, job.frame
    folder = budget.pictures and budget.pictures / f"{name}-{seed}"
    direct: dict[str, Any] = {"images": n, "batch_size": min(n, 128), "steps": steps, "seed": seed, "folder": folder}
    small: dict[str, Any] = {"hard": 10.0, "focus": 2.0, "crops": 0.0} if frame.size <= 64 else {}
    make: dict[str, Callable[[], Batch]] = {
        "noise": lambda: gaussian(job, n, seed),
        "zeroq": lambda: zeroq_images(teacher, frame, n=n, steps=steps, seed=seed, folder=folder),
        "dsg": lambda: dsg_images(teacher, frame, n=n, steps=steps, seed=seed, folder=folder),
        "intraq": lambda: intraq_images(teacher, frame, **direct),
        "hast": lambda: hast_images(teacher, frame, **direct, **small),
        "synq": lambda: synq_images(teacher, frame, **direct, **small, centre_steps=steps),
        "plf": lambda: plf_images(teacher, frame, **direct, inception=10.0 if frame.size <= 64 else 0.1),
        "genie": lambda: genie_images(teacher, frame, images=n, group=128, steps=steps, seed=seed, folder=folder),
        "psaq": lambda: psaq_images(
            teacher, frame, images=n, steps=steps, seed=seed, mean=job.mean, deviation=job.deviation, folder=folder
        ),
        "real": lambda: real(job, n, seed),
    }
    return job.images(name, seed, make[name])


def gaussian(job: VisionJob, n: int, seed: int) -> Batch:
    shape = (n, job.frame.channels, job.frame.size, job.frame.size)
    return {"pixel_values": torch.randn(shape, generator=torch.Generator().manual_seed(seed))}


def real(job: VisionJob, n: int, seed: int) -> Batch:
    """As many real images as the others make: the oracle's. Not zero-shot."""
    if job.real is None:
        raise ValueError(f"{job.name} has no real images for the oracle; give --real")
    pixels = job.real()
    return {"pixel_values": pixels[torch.randperm(len(pixels), generator=torch.Generator().manual_seed(seed))[:n]]}


def ranges(source: str) -> Method:
    """Round-to-nearest, static ranges from the images; no step is taken."""

    def run(job: VisionJob, config: QuantConfig, budget: VisionBudget, seed: int, loop: Loop) -> nn.Module:
        images = shared(job, source, budget, seed)
        return calibrate(quantize_model(job.teacher, config), parts(images, 64), loop.accelerator)

    return run


def direct(method: Callable[..., nn.Module], source: str, lr: float, **options: Any) -> Method:
    """Fine-tuning on images made before; `lr` as published for CIFAR."""

    def run(job: VisionJob, config: QuantConfig, budget: VisionBudget, seed: int, loop: Loop) -> nn.Module:
        return method(
            job.teacher, config, shared(job, source, budget, seed), steps=budget.steps, batch_size=budget.batch,
            lr=lr * budget.speed, seed=seed, loop=loop, **options,
        )  # fmt: skip

    return run


def generated(method: Callable[..., nn.Module], lr: float, **options: Any) -> Method:
    """A generator that learns beside the student, after `warmup` steps alone."""

    def run(job: VisionJob, config: QuantConfig, budget: VisionBudget, seed: int, loop: Loop) -> nn.Module:
        return method(
            job.teacher, config, job.frame, steps=budget.steps, warmup=budget.warmup, calibration=10,
            batch_size=budget.batch, lr=lr * budget.speed, seed=seed, loop=loop,
            folder=budget.pictures and budget.pictures / f"{method.__name__}-{seed}", **options,
        )  # fmt: skip

    return run


def host(name: str, job: VisionJob, budget: VisionBudget, seed: int) -> Source:
    """The generator of a generator method, fresh."""
    if name == "qimera":
        start = torch.randn(head(job.teacher).weight.shape, generator=torch.Generator().manual_seed(seed))
        return Superposed(job.frame, budget.batch, start, mix=2, seed=seed)
    if name == "arc":
        return Searched(job.frame, budget.batch, CIFAR10, seed=seed)
    return Conditional(job.frame, budget.batch, seed=seed)


def inundated(name: str) -> Method:
    """AIT on a host, with its own learning rate: the stretch takes up the budget's."""

    def run(job: VisionJob, config: QuantConfig, budget: VisionBudget, seed: int, loop: Loop) -> nn.Module:
        source = host(name, job, budget, seed)
        return ait(
            job.teacher, config, source, steps=budget.steps, warmup=budget.warmup, calibration=10, share=1e-3,
            loop=loop, folder=budget.pictures and budget.pictures / f"{name}-ait-{seed}",
        )  # fmt: skip

    return run


def divergence_alone(name: str, lr: float) -> Method:
    """AIT's control: its objective with plain steps at a learning rate of its own, which nobody has tuned yet."""

    def run(job: VisionJob, config: QuantConfig, budget: VisionBudget, seed: int, loop: Loop) -> nn.Module:
        student = quantize_model(job.teacher, config)
        total = budget.warmup + 10 + budget.steps
        player = play(host(name, job, budget, seed), job.teacher, total, warmup=budget.warmup)
        return fit(
            student, job.teacher, player, KL(20.0), sgd(student, lr, 0.0), budget.steps,
            warmup=budget.warmup, calibration=10, loop=loop,
            folder=budget.pictures and budget.pictures / f"{name}-kl-{seed}",
        )  # fmt: skip

    return run


def blockwise(source: str, cutoff: float | None = None) -> Method:
    """Genie-M on images of any source, behind SynQ's filter where a cutoff is given."""

    def run(job: VisionJob, config: QuantConfig, budget: VisionBudget, seed: int, loop: Loop) -> nn.Module:
        images = filtered(shared(job, source, budget, seed), cutoff)
        return genie_m(job.teacher, config, images, steps=budget.unit_steps, seed=seed, loop=loop)

    return run


def transformer(source: str) -> Method:
    """PSAQ-ViT's reconstruction on images of any source."""

    def run(job: VisionJob, config: QuantConfig, budget: VisionBudget, seed: int, loop: Loop) -> nn.Module:
        return psaq_learned(
            job.teacher, config, shared(job, source, budget, seed), job.frame, unit_steps=budget.unit_steps, seed=seed,
            mean=job.mean, deviation=job.deviation, loop=loop,
        )  # fmt: skip

    return run


def sharpened(released: bool) -> Method:
    """SADAG: Genie's images sharpened against a student of a fifth of the reconstruction's budget, as published."""

    def run(job: VisionJob, config: QuantConfig, budget: VisionBudget, seed: int, loop: Loop) -> nn.Module:
        folder = budget.pictures and budget.pictures / f"sadag{'-released' * released}-{seed}"
        images = sadag_images(
            job.teacher, config, job.frame, images=budget.images, group=128, steps=budget.dream, folder=folder,
            unit_steps=max(1, budget.unit_steps // 5), sharpening=max(1, budget.dream // 8), released=released,
            seed=seed, loop=loop,
        )  # fmt: skip
        return genie_m(job.teacher, config, images, steps=budget.unit_steps, seed=seed, loop=loop)

    return run


METHODS: dict[str, Method] = {
    "rtn-noise": ranges("noise"),
    "rtn-oracle": ranges("real"),
    "zeroq": ranges("zeroq"),
    "dsg": ranges("dsg"),
    "psaq": ranges("psaq"),
    "gdfq": generated(gdfq, 1e-4),
    "qimera": generated(qimera, 1e-4, mix=2, from_teacher=False),
    "arc": generated(arc, 1e-4, cells=CIFAR10),
    "gdfq-ait": inundated("gdfq"),
    "qimera-ait": inundated("qimera"),
    "arc-ait": inundated("arc"),
    "gdfq-kl": divergence_alone("gdfq", 1e-4),
    "adasg": generated(adasg, 1e-4, temperature=20.0),
    "adadfq": generated(adadfq, 1e-4, temperature=20.0),
    "texq": generated(texq, 1e-4, centre_steps=200),
    "intraq": direct(intraq, "intraq", 1e-4),
    "plf": direct(plf, "plf", 1e-3, highest=0.5, lowest=0.2, unsure=0.3, features=100.0),
    "hast": direct(hast, "hast", 1e-5, attention=1000.0),
    "synq": direct(synq, "hast", 1e-5, difficulty=0.7),
    "synq-no-filter": direct(synq, "hast", 1e-5, difficulty=0.7, cutoff=None),
    "synq-no-maps": direct(synq, "hast", 1e-5, difficulty=0.7, maps=0.0),
    "synq-all-labels": direct(synq, "hast", 1e-5, difficulty=None),
    "synq-psaq": direct(synq, "psaq", 1e-5),
    "synq-noise": direct(synq, "noise", 1e-5, difficulty=0.7),
    "oracle": direct(synq, "real", 1e-5, difficulty=0.7, cutoff=None),  # real images: not zero-shot
    "genie": blockwise("genie"),
    "genie-synq": blockwise("genie", cutoff=0.25),
    "psaq-learned": transformer("psaq"),
    "psaq-noise": transformer("noise"),
    "psaq-oracle": transformer("real"),  # real images: not zero-shot
    "genie-noise": blockwise("noise"),
    "genie-oracle": blockwise("real"),  # real images: not zero-shot
    "sadag": sharpened(released=False),
    "sadag-released": sharpened(released=True),
}
