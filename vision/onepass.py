"""A student fitted in one forward pass, on any images: no step of training."""

from pathlib import Path

from torch import nn

from zsaq.quant.config import QuantConfig
from zsaq.quant.model import quantize_model
from zsaq.train.loop import Loop
from zsaq.train.one_pass import one_pass
from zsaq.train.pair import Batch
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.models import classifier
from zsaq.vision.sources.crops import minibatches


def onepass(
    teacher: nn.Module, config: QuantConfig, spec: ImageSpec, images: Batch, *,
    damping: float = 0.01, seed: int = 0, loop: Loop | None = None, folder: Path | None = None, stage: str = "onepass",
) -> nn.Module:  # fmt: skip
    """A student of `teacher` in float32, fitted on `images` as `zsaq.one_pass` does, under any preset's `config`.

    Nothing is drawn, so `seed` changes nothing; the images' own does. `folder` is not used. Raises ValueError as
    `zsaq.one_pass` does.
    """
    teacher = classifier(teacher)
    student = quantize_model(teacher, config).float()  # 16 bits would not keep what is rounded
    return one_pass(student, teacher, minibatches(images, 64), damping=damping, loop=loop, stage=stage)
