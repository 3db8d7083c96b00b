"""AdaDFQ (Qian et al. 2023, arXiv 2303.06869): AdaSG's game with margins and weights that adapt to bits and model.

Disagreement and agreement are weighed apart, and the lower margin says how much the student may be surprised.
"""

from pathlib import Path

from torch import nn

from zsaq.train.loop import Loop
from zsaq.vision.beginning import Start
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.papers.adasg import contend


def adadfq(
    teacher: nn.Module, config: Start, spec: ImageSpec, images: None = None, *,
    margins: tuple[float, float] = (0.1, 0.8), disagree: float = 0.2, agree: float = 0.1, steps: int = 70_000,
    warmup: int = 10_000, calibration: int = 100, batch_size: int = 16, lr: float = 1e-5, temperature: float = 5.0,
    seed: int = 0, loop: Loop | None = None, folder: Path | None = None,
) -> nn.Module:  # fmt: skip
    """A quantized student of `teacher` without data. Defaults are the paper's for ImageNet; ResNet-18 at 4 bits has
    margins=(0.3, 0.8), MobileNetV2 at 4 bits disagree=0.3; CIFAR has steps=79_200, warmup=800, lr=1e-4, temperature=20.

    Stages, pictures and errors as in `adasg`.
    """
    return contend(
        teacher, config, spec, margins=margins, disagree=disagree, agree=agree, steps=steps, warmup=warmup,
        calibration=calibration, batch_size=batch_size, lr=lr, temperature=temperature, seed=seed, loop=loop,
        folder=folder,
    )  # fmt: skip
