"""The rows of the vision tables: every method on the same job, with the same budget."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from vision_images import VisionBudget, genies, shared
from vision_job import VisionJob

from zsaq import KL, Batch, Loop, QuantConfig, calibrate, quantize_model
from zsaq.train.synthesis import Source
from zsaq.vision.alternation import fit
from zsaq.vision.fine_tuning import parts
from zsaq.vision.losses.matching import LayerGradient
from zsaq.vision.models import classifier, head, last_feature_map
from zsaq.vision.papers.adadfq import adadfq
from zsaq.vision.papers.adasg import adasg
from zsaq.vision.papers.ait import ait
from zsaq.vision.papers.arc import SearchedGenerator, arc
from zsaq.vision.papers.gdfq import gdfq, play, sgd
from zsaq.vision.papers.genie import genie_m
from zsaq.vision.papers.hast import hast
from zsaq.vision.papers.intraq import intraq
from zsaq.vision.papers.plf import plf
from zsaq.vision.papers.psaq import psaq_learned
from zsaq.vision.papers.qimera import Superposed, qimera
from zsaq.vision.papers.sadag import sadag_images
from zsaq.vision.papers.synq import filtered, synq
from zsaq.vision.papers.texq import texq
from zsaq.vision.published import published
from zsaq.vision.sources.generators import Conditional

Method = Callable[[VisionJob, QuantConfig, VisionBudget, int, Loop], nn.Module]


def ranges(source: str) -> Method:
    """Round-to-nearest, static ranges from the images; no step is taken."""

    def run(job: VisionJob, config: QuantConfig, budget: VisionBudget, seed: int, loop: Loop) -> nn.Module:
        images = shared(job, source, budget, seed)
        return calibrate(quantize_model(job.teacher, config), parts(images, 64), loop.accelerator)

    return run


def settings(method: Callable[..., nn.Module], job: VisionJob, budget: VisionBudget) -> dict[str, Any]:
    """The published ones for the job's images, the learning rate at the budget's speed."""
    told = published(method, job.spec)
    return {**told, "lr": told["lr"] * budget.speed}


def direct(method: Callable[..., nn.Module], source: str, *, ranges: str | None = "zeroq", **options: Any) -> Method:
    """Fine-tuning on images made before, with the static ranges of those of `ranges`; None: of the same images.

    ZeroQ's are our choice, and cost less than the GDFQ generator that the papers train for this and throw away. On
    CIFAR-10's ResNet-20 the largest answers of its ReLUs to them (64 images, 100 steps) are 0.6 to 0.96 of those to
    real images. SynQ keeps the ranges of its filtered images: chosen on that net's test images, for which it is no
    clean zero-shot choice.
    """

    def run(job: VisionJob, config: QuantConfig, budget: VisionBudget, seed: int, loop: Loop) -> nn.Module:
        return method(
            job.teacher, config, shared(job, source, budget, seed), steps=budget.steps, batch_size=budget.batch,
            ranges=None if ranges is None else parts(shared(job, ranges, budget, seed), 64), seed=seed, loop=loop,
            **settings(method, job, budget) | options,
        )  # fmt: skip

    return run


def filtering(source: str, **options: Any) -> Method:
    """SynQ with its filter, and a picture before and after it beside those of the source."""

    def run(job: VisionJob, config: QuantConfig, budget: VisionBudget, seed: int, loop: Loop) -> nn.Module:
        folder = budget.pictures and budget.pictures / f"{source}-{seed}"
        return direct(synq, source, folder=folder, **options)(job, config, budget, seed, loop)

    return run


def generated(method: Callable[..., nn.Module], **options: Any) -> Method:
    """A generator that learns beside the student, after `warmup` steps alone."""

    def run(job: VisionJob, config: QuantConfig, budget: VisionBudget, seed: int, loop: Loop) -> nn.Module:
        return method(
            job.teacher, config, job.spec, steps=budget.steps, warmup=budget.warmup, calibration=10,
            batch_size=budget.batch, seed=seed, loop=loop, **settings(method, job, budget), **options,
            folder=budget.pictures and budget.pictures / f"{method.__name__}-{seed}",
        )  # fmt: skip

    return run


def host(name: str, job: VisionJob, budget: VisionBudget, seed: int) -> Source:
    """The generator of a generator method, fresh."""
    if name == "qimera":
        start = torch.randn(head(job.teacher).weight.shape, generator=torch.Generator().manual_seed(seed))
        return Superposed(job.spec, budget.batch, start, **published(Superposed, job.spec), seed=seed)
    if name == "arc":
        return SearchedGenerator(job.spec, budget.batch, published(arc, job.spec)["cells"], seed=seed)
    return Conditional(job.spec, budget.batch, seed=seed)


def inundated(name: str) -> Method:
    """AIT on a host, with its own learning rate: the stretch takes up the budget's."""

    def run(job: VisionJob, config: QuantConfig, budget: VisionBudget, seed: int, loop: Loop) -> nn.Module:
        source = host(name, job, budget, seed)
        return ait(
            job.teacher, config, source, job.spec, steps=budget.steps, warmup=budget.warmup, calibration=10, loop=loop,
            **published(ait, job.spec), folder=budget.pictures and budget.pictures / f"{name}-ait-{seed}",
        )  # fmt: skip

    return run


def divergence_alone(name: str, lr: float) -> Method:
    """AIT's control: the KL divergence summed over classes, with plain steps at a learning rate of its own, which
    nobody has tuned yet."""

    def run(job: VisionJob, config: QuantConfig, budget: VisionBudget, seed: int, loop: Loop) -> nn.Module:
        student = quantize_model(job.teacher, config)
        total = budget.warmup + 10 + budget.steps
        synthesizer = play(host(name, job, budget, seed), job.teacher, total, warmup=budget.warmup)
        return fit(
            student, job.teacher, synthesizer, KL(20.0), sgd(student, lr, 0.0), budget.steps,
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
            job.teacher, config, shared(job, source, budget, seed), job.spec, unit_steps=budget.unit_steps, seed=seed,
            mean=job.mean, deviation=job.deviation, loop=loop,
        )  # fmt: skip

    return run


def repaired(source: str) -> Method:
    """SynQ on Genie: Genie-M on filtered images of `source`, whose student SynQ then fine-tunes.

    The labels are the teacher's answers.
    """

    def run(job: VisionJob, config: QuantConfig, budget: VisionBudget, seed: int, loop: Loop) -> nn.Module:
        images = shared(job, source, budget, seed)
        student = blockwise(source, cutoff=0.25)(job, config, budget, seed, loop)
        return synq(
            job.teacher, student, images, steps=budget.steps, batch_size=budget.batch, cutoff=0.25, seed=seed,
            loop=loop, **settings(synq, job, budget),
        )  # fmt: skip

    return run


def sadag_made(
    job: VisionJob, config: QuantConfig, budget: VisionBudget, seed: int, loop: Loop, name: str, **options: Any
) -> Batch:
    """Images sharpened against a student of a fifth of the reconstruction's budget, as published."""
    return sadag_images(
        job.teacher, config, job.spec, images=budget.images, group=128, steps=budget.image_steps,
        folder=budget.pictures and budget.pictures / f"{name}-{seed}", unit_steps=max(1, budget.unit_steps // 5),
        sharpening=max(1, budget.image_steps // 8), seed=seed, loop=loop, **options,
    )  # fmt: skip


def sharpened(name: str, deep: bool = False, released: bool = False) -> Method:
    """SADAG on Genie's trained sources, with gradients of the head, or `deep` ones, of the last convolution (16
    projections bound the cost)."""

    def run(job: VisionJob, config: QuantConfig, budget: VisionBudget, seed: int, loop: Loop) -> nn.Module:
        layer = LayerGradient(last_feature_map(classifier(job.teacher), job.spec), sketch=16) if deep else None
        start, _ = genies(job, budget, seed)
        images = sadag_made(job, config, budget, seed, loop, name, start=start, layer=layer, released=released)
        return genie_m(job.teacher, config, images, steps=budget.unit_steps, seed=seed, loop=loop)

    return run


def sharpened_transformer(
    job: VisionJob, config: QuantConfig, budget: VisionBudget, seed: int, loop: Loop
) -> nn.Module:
    """SADAG on PSAQ-ViT's images, for its reconstruction."""
    start = shared(job, "psaq", budget, seed)
    images = sadag_made(job, config, budget, seed, loop, "psaq-sadag", start=start)
    return psaq_learned(
        job.teacher, config, images, job.spec, unit_steps=budget.unit_steps, seed=seed, mean=job.mean,
        deviation=job.deviation, loop=loop,
    )  # fmt: skip


METHODS: dict[str, Method] = {
    "rtn-noise": ranges("noise"),
    "rtn-oracle": ranges("real"),
    "zeroq": ranges("zeroq"),
    "dsg": ranges("dsg"),
    "psaq": ranges("psaq"),
    "gdfq": generated(gdfq),
    "qimera": generated(qimera),
    "arc": generated(arc),
    "gdfq-ait": inundated("gdfq"),
    "qimera-ait": inundated("qimera"),
    "arc-ait": inundated("arc"),
    "gdfq-kl": divergence_alone("gdfq", 1e-4),
    "adasg": generated(adasg),
    "adadfq": generated(adadfq),
    "texq": generated(texq, centre_steps=200),
    "intraq": direct(intraq, "intraq"),
    "plf": direct(plf, "plf"),
    "hast": direct(hast, "hast"),
    "synq": filtering("hast", ranges=None),
    # The filter's two effects, on ranges and on what is trained on: both, the second alone, none.
    "synq-zeroq-ranges": filtering("hast"),
    "synq-no-filter": direct(synq, "hast", cutoff=None),
    "synq-no-maps": filtering("hast", ranges=None, maps=0.0),
    "synq-all-labels": filtering("hast", ranges=None, difficulty=None),
    "synq-psaq": filtering("psaq", ranges=None, difficulty=0.5),
    "synq-noise": filtering("noise", ranges=None),
    "oracle": direct(synq, "real", ranges=None, cutoff=None),  # real images: not zero-shot
    "genie": blockwise("genie"),
    "genie-filter": blockwise("genie", cutoff=0.25),
    "genie-synq": repaired("genie"),
    "psaq-learned": transformer("psaq"),
    "psaq-sadag": sharpened_transformer,
    "psaq-noise": transformer("noise"),
    "psaq-oracle": transformer("real"),  # real images: not zero-shot
    "genie-noise": blockwise("noise"),
    "genie-oracle": blockwise("real"),  # real images: not zero-shot
    "sadag": sharpened("sadag"),
    "sadag-released": sharpened("sadag-released", released=True),
    "sadag-deep": sharpened("sadag-deep", deep=True),
}
