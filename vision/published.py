"""What the papers are, and what they set beside budgets (images, steps, batches), by the size of the images."""

from collections.abc import Callable
from typing import Any

from zsaq.vision.fine_tuning import on_batches
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.onepass import onepass_blocks_kl, onepass_kl
from zsaq.vision.papers.adadfq import adadfq
from zsaq.vision.papers.adasg import adasg
from zsaq.vision.papers.ait import ait
from zsaq.vision.papers.arc import CIFAR10, RESNET18, arc
from zsaq.vision.papers.gdfq import gdfq
from zsaq.vision.papers.hast import hast, hast_images
from zsaq.vision.papers.intraq import intraq, intraq_images
from zsaq.vision.papers.plf import plf, plf_images
from zsaq.vision.papers.qimera import Superposed, qimera
from zsaq.vision.papers.synq import genie_synq, synq, synq_images
from zsaq.vision.papers.texq import texq

Settings = dict[str, Any]
HARD: Settings = {"hard": 10.0, "focus": 2.0, "crops": 0.0}
# Of each method: for CIFAR-10, and for ImageNet what its defaults do not say. Where `lr` stands here, rows scale it by
# their `speed`.
TABLE: dict[Callable[..., Any], tuple[Settings, Settings]] = {
    gdfq: ({"lr": 1e-4}, {"lr": 1e-6}),
    qimera: ({"lr": 1e-4, "mix": 2, "from_teacher": False}, {"lr": 1e-6, "mix": 100, "from_teacher": False}),
    Superposed: ({"mix": 2}, {"mix": 100}),  # ImageNet: of MobileNetV2; ResNet-18 has 500
    arc: ({"lr": 1e-4, "cells": CIFAR10}, {"lr": 1e-6, "cells": RESNET18}),
    ait: ({"share": 1e-3}, {"share": 1e-4}),  # the stretch takes up the budget's rate
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
    genie_synq: ({"lr": 1e-5, "difficulty": 0.7}, {"lr": 1e-6}),
    onepass_kl: ({"lr": 1e-3}, {"lr": 1e-4}),  # ours
    onepass_blocks_kl: ({"lr": 1e-3}, {"lr": 1e-4}),
    on_batches: ({"lr": 1e-4}, {"lr": 1e-6}),  # not published: GDFQ's
}


def published(method: Callable[..., Any], spec: ImageSpec) -> Settings:
    """Keyword arguments of `method`: those of CIFAR-10 for images up to 64 pixels wide, ImageNet's beyond."""
    return dict(TABLE.get(method, ({}, {}))[spec.size > 64])


PAPERS = {
    "": "",
    "zeroq": "Cai et al. 2020, arXiv 2001.00281",
    "gdfq": "Xu et al. 2020, arXiv 2003.03603",
    "dsg": "Zhang et al. 2021, arXiv 2103.01049",
    "arc": "Zhu et al. 2021, arXiv 2105.12151",
    "qimera": "Choi et al. 2021, arXiv 2111.02625",
    "intraq": "Zhong et al. 2022, arXiv 2111.09136",
    "psaq": "Li et al. 2022, arXiv 2203.02250",
    "ait": "Choi et al. 2022, arXiv 2203.17008",
    "adasg": "Qian et al. 2023, arXiv 2302.09572",
    "adadfq": "Qian et al. 2023, arXiv 2303.06869",
    "hast": "Li et al. 2023, arXiv 2303.13826",
    "texq": "Chen et al. 2023, NeurIPS",
    "genie": "Jeon et al. 2023, arXiv 2212.04780",
    "plf": "Fan et al. 2024, CVPR",
    "sadag": "Dung et al. 2024, arXiv 2510.07018",
    "synq": "Kim et al. 2025, ICLR",
}
