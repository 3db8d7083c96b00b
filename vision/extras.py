"""What a row's fit takes beside its budget, and only the job knows: each answers keyword arguments."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from zsaq.method import Budget
from zsaq.train.synthesis import Source
from zsaq.vision.heads import head
from zsaq.vision.images import images_of
from zsaq.vision.job import ImageJob
from zsaq.vision.losses.matching import LayerGradient
from zsaq.vision.models import last_feature_map
from zsaq.vision.papers.arc import SearchedGenerator, arc
from zsaq.vision.papers.psaq import psaq_learned
from zsaq.vision.papers.qimera import Superposed
from zsaq.vision.published import published
from zsaq.vision.sources.crops import minibatches

Extra = Callable[[ImageJob, Budget, int], dict[str, Any]]


def zeroq_ranges(job: ImageJob, budget: Budget, seed: int) -> dict[str, Any]:
    """Static ranges of as many of ZeroQ's images, but no more than fit a batch.

    They are our choice, and cost less than the GDFQ generator that the papers train for this and throw away. On
    CIFAR-10's ResNet-20 the largest answers of its ReLUs to them (64 images, 100 steps) are 0.6 to 0.96 of those to
    real images. SynQ keeps the ranges of its filtered images: chosen on that net's test images, for which it is no
    clean zero-shot choice.
    """
    batch: Any = images_of(job, "zeroq", seed, images=min(budget["images"], 128), steps=budget["image_steps"])
    return {"ranges": minibatches(batch, 64)}


def mean_and_deviation(job: ImageJob, budget: Budget, seed: int) -> dict[str, Any]:
    """What is black and white to the teacher."""
    return {**job.normalised}


def host(name: str) -> Extra:
    """A fresh generator of Qimera or ARC, for AIT."""

    def source(job: ImageJob, budget: Budget, seed: int) -> dict[str, Source]:
        spec, size = job.spec, budget["batch_size"]
        if name == "arc":
            return {"source": SearchedGenerator(spec, size, published(arc, spec)["cells"], seed=seed)}
        start = torch.randn(head(job.teacher, spec).weight.shape, generator=torch.Generator().manual_seed(seed))
        return {"source": Superposed(spec, size, start, **published(Superposed, spec), seed=seed)}

    return source


def deep(job: ImageJob, budget: Budget, seed: int) -> dict[str, Any]:
    """Gradients of the last convolution; 16 projections bound the cost."""
    return {"layer": LayerGradient(last_feature_map(job.teacher, job.spec), sketch=16)}


def by_psaq(job: ImageJob, budget: Budget, seed: int) -> dict[str, Any]:
    """The last student by PSAQ-ViT's rounding instead of Genie's."""
    return {"learn": partial(psaq_learned, **job.normalised)}
