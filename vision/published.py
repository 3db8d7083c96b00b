"""What the papers set beside budgets (images, steps, batches): one table for every recipe and the command line."""

from collections.abc import Callable
from typing import Any

from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.papers.adadfq import adadfq
from zsaq.vision.papers.adasg import adasg
from zsaq.vision.papers.ait import ait
from zsaq.vision.papers.arc import CIFAR10, RESNET18, arc
from zsaq.vision.papers.gdfq import gdfq
from zsaq.vision.papers.hast import hast, hast_images
from zsaq.vision.papers.intraq import intraq, intraq_images
from zsaq.vision.papers.plf import plf, plf_images
from zsaq.vision.papers.qimera import Superposed, qimera
from zsaq.vision.papers.synq import synq, synq_images
from zsaq.vision.papers.texq import texq

Settings = dict[str, Any]
HARD: Settings = {"hard": 10.0, "focus": 2.0, "crops": 0.0}
# Of each method: for CIFAR-10, and for ImageNet what its defaults do not say. `lr` always stands here, since budgets
# scale it.
TABLE: dict[Callable[..., Any], tuple[Settings, Settings]] = {
    gdfq: ({"lr": 1e-4}, {"lr": 1e-6}),
    qimera: ({"lr": 1e-4, "mix": 2, "from_teacher": False}, {"lr": 1e-6, "mix": 100, "from_teacher": False}),
    Superposed: ({"mix": 2}, {"mix": 100}),  # ImageNet: of MobileNetV2; ResNet-18 has 500
    arc: ({"lr": 1e-4, "cells": CIFAR10}, {"lr": 1e-6, "cells": RESNET18}),
    ait: ({"lr": 1e-4, "share": 1e-3}, {"lr": 1e-4, "share": 1e-4}),
    adasg: ({"lr": 1e-4, "temperature": 20.0}, {"lr": 1e-5, "temperature": 5.0}),
    adadfq: ({"lr": 1e-4, "temperature": 20.0}, {"lr": 1e-5, "temperature": 5.0}),
    texq: ({"lr": 1e-4}, {"lr": 1e-6}),  # not published: GDFQ's
    intraq_images: ({}, {"low": 1.0, "lower": 0.0, "upper": 2.0}),
    intraq: ({"lr": 1e-5}, {"lr": 1e-6}),  # published for CIFAR: 1e-4, which diverges, see `intraq`
    plf_images: ({"inception": 10.0}, {}),
    plf: ({"lr": 1e-3, "highest": 0.5, "lowest": 0.2, "unsure": 0.3, "features": 100.0}, {"lr": 1e-5}),
    hast_images: (HARD, {}),
    hast: ({"lr": 1e-5, "attention": 1000.0}, {"lr": 1e-6}),
    synq_images: (HARD, {}),
    synq: ({"lr": 1e-5, "difficulty": 0.7}, {"lr": 1e-6}),
}


def published(method: Callable[..., Any], spec: ImageSpec) -> Settings:
    """Keyword arguments of `method`: those of CIFAR-10 for images up to 64 pixels wide, ImageNet's beyond."""
    return dict(TABLE[method][spec.size > 64])
