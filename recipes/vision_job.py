"""What a vision recipe works on: a teacher, its frame, how a model is measured, and images that methods share."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from cifar import FRAME, load, test_images
from digits import prepare
from torch import Tensor, nn

from zsaq.pair import Batch, run
from zsaq.vision.frame import Frame
from zsaq.vision.models import classifier, frame_of

Images = tuple[Tensor, Tensor]


@dataclass
class VisionJob:
    """`test`: what is reported, nothing else; `real()`: unlabelled real images for the oracle, not read before it asks.

    `made`: synthetic images by name and seed, so that methods (and bit widths) that share them compare on the same.
    """

    name: str
    teacher: nn.Module
    frame: Frame
    test: Images
    real: Callable[[], Tensor] | None = None
    made: dict[tuple[str, int], Batch] = field(default_factory=dict)

    def images(self, name: str, seed: int, make: Callable[[], Batch]) -> Batch:
        if (name, seed) not in self.made:
            self.made[name, seed] = make()
        return self.made[name, seed]

    def measure(self, student: nn.Module, size: int = 250) -> dict[str, float]:
        """Top-1 on the test images, agreement with the teacher and KL(teacher || student) in nats."""
        device = next(student.parameters()).device
        with torch.no_grad():
            sides = [
                torch.cat([run(m, {"pixel_values": x.to(device)}).logits.cpu() for x in self.test[0].split(size)])
                for m in (self.teacher.to(device), student.eval())
            ]
        p, q = (side.double().log_softmax(-1) for side in sides)
        return {
            "score": float((q.argmax(-1) == self.test[1]).double().mean()),
            "agreement": float((p.argmax(-1) == q.argmax(-1)).double().mean()),
            "kl": float((p.exp() * (p - q)).sum(-1).mean()),
        }


def digits(which: str) -> VisionJob:
    """The embedded default that downloads nothing: `which` is "resnet" or "vit"."""
    made = prepare()
    teacher = {"resnet": made.resnet, "vit": made.vit}[which]
    return VisionJob(f"digits {which}", teacher, frame_of(teacher), made.test, lambda: made.train[0])


def cifar(weights: str, test: list[str], real: str | None) -> VisionJob:
    """A CIFAR ResNet (recipes/cifar.py) on one or several parquet files of test images."""
    parts = [test_images(path) for path in test]
    images = (torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts]))
    name = f"{Path(weights).stem} on {', '.join(Path(path).stem for path in test)}"
    return VisionJob(name, classifier(load(weights)), FRAME, images, real and (lambda: test_images(real)[0]))
