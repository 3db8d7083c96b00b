"""ARC, or AutoReCon (Zhu et al. 2021, arXiv 2105.12151): GDFQ with a generator whose cells were found by search.

The search itself is not done here; its published results are the constants below.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zsaq.train.loop import Loop
from zsaq.train.pair import Batch
from zsaq.train.randomness import generator
from zsaq.train.synthesis import Source, process_index, seed_of
from zsaq.vision.beginning import Start
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.models import classifier
from zsaq.vision.papers.gdfq import learn
from zsaq.vision.sources.generators import EPS, ConditionalNorm, check_batch, first_side, seeded

CHANNELS = 64


@final
@dataclass(frozen=True)
class Cells:
    """What was found for three cells; every cell has nodes 0, 1, 2, 3 and doubles the side.

    `ups`: two for each cell, to its nodes 0 and 1: "N" nearest or "B" bilinear. `convs`: for each cell the convolutions
    0->2, 1->2, 0->3, 1->3, 2->3: kernel size, "d" dilated by 2, "-" none. `cross`: between the first and second and the
    second and third cell the ups of the earlier cell's nodes 0, 1, 2 to the later's node 2, then to its node 3.
    """

    ups: str
    convs: tuple[str, str, str]
    cross: tuple[str, str]


CIFAR10 = Cells("NNNNBN", ("d5 - d5 d3 5", "d5 d5 3 d3 d5", "d5 d5 1 5 d3"), ("--B--N", "NNNBBB"))
CIFAR100 = Cells("BNNNNN", ("d5 d5 d5 - 5", "d5 5 1 d3 d5", "d5 d3 5 5 d5"), ("-BN--N", "-BNNBB"))
RESNET18 = Cells("BBBBBB", ("d5 d5 d5 d5 d5", "d5 d5 d5 d5 d3", "d5 d5 5 d3 d3"), ("NBNBBN", "BBNNBN"))
RESNET50 = Cells("BBBBBB", ("d5 d5 d5 d5 d5", "d5 d5 3 1 1", "d3 d5 d5 5 d3"), ("BBBNNB", "NNNNBB"))
MOBILENET_V2 = Cells("BBBBNB", ("d5 d5 5 d5 d5", "5 d5 1 1 1", "3 d5 5 d5 d3"), ("BBNBBB", "BNBBBN"))


@final
class Edge(nn.Module):
    """Conditional norm, leaky ReLU and a convolution; `up` first doubles the side, "N" nearest or "B" bilinear."""

    def __init__(self, classes: int, kernel: str, up: str | None = None) -> None:
        super().__init__()
        size, dilation = int(kernel[-1]), 2 if kernel[0] == "d" else 1
        self.up = up
        self.norm = ConditionalNorm(CHANNELS, classes, EPS)
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, size, padding=size // 2 * dilation, dilation=dilation)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        if self.up is not None:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest" if self.up == "N" else "bilinear")
        return self.conv(F.leaky_relu(self.norm(x, labels), 0.2))


@final
class Cell(nn.Module):
    """From [B, 64, s, s] and the nodes of the cell before to nodes 0 to 3, [B, 64, 2 s, 2 s] each."""

    def __init__(self, classes: int, ups: str, convs: str, cross: str) -> None:
        super().__init__()
        self.ups = nn.ModuleList(Edge(classes, "1", up) for up in ups)
        ends = zip(convs.split(), ("0-2", "1-2", "0-3", "1-3", "2-3"), strict=True)
        self.convs = nn.ModuleDict({end: Edge(classes, kernel) for kernel, end in ends if kernel != "-"})
        ends = zip(cross, ("0-2", "1-2", "2-2", "0-3", "1-3", "2-3"), strict=False)
        self.cross = nn.ModuleDict({end: Edge(classes, "1", up) for up, end in ends if up != "-"})

    def forward(self, x: Tensor, before: list[Tensor], labels: Tensor) -> list[Tensor]:
        nodes = [up(x, labels) for up in self.ups]
        for node in "23":
            parts = [edge(nodes[int(end[0])], labels) for end, edge in self.convs.items() if end[2] == node]
            parts += [edge(before[int(end[0])], labels) for end, edge in self.cross.items() if end[2] == node]
            nodes.append(torch.stack(parts).sum(0))
        return nodes


@final
class SearchedGenerator(Source):
    """Fresh noise and uniform labels through three searched cells; 33, 33 and 34 of 100 latent numbers enter each.

    The side must be a multiple of 8. Labels act in the norms alone.
    """

    def __init__(self, spec: ImageSpec, batch_size: int, cells: Cells, *, seed: int = 0) -> None:
        super().__init__()
        check_batch(batch_size)
        self.spec, self.batch_size, side = spec, batch_size, first_side(spec, 3)
        self.widths, self.sides = (33, 33, 34), [side, 2 * side, 4 * side]
        with seeded(seed):
            self.linears = nn.ModuleList(
                nn.Linear(width, CHANNELS * side**2) for width, side in zip(self.widths, self.sides, strict=True)
            )
            self.cells = nn.ModuleList(
                Cell(spec.classes, cells.ups[2 * i : 2 * i + 2], cells.convs[i], cells.cross[i - 1] if i else "")
                for i in range(3)
            )
            self.norm = ConditionalNorm(CHANNELS, spec.classes, EPS)
            self.paint = nn.Conv2d(CHANNELS, spec.channels, 3, padding=1)
            self.last = nn.BatchNorm2d(spec.channels, affine=False)
        self.rng = generator(seed_of(seed, process_index()))

    def forward(self) -> Batch:
        device = self.paint.weight.device
        noise = torch.randn(self.batch_size, sum(self.widths), generator=self.rng).to(device).split(self.widths, 1)
        labels = torch.randint(self.spec.classes, (self.batch_size,), generator=self.rng).to(device)
        x, nodes = torch.zeros((), device=device), []
        for z, side, linear, cell in zip(noise, self.sides, self.linears, self.cells, strict=True):
            nodes = cell(x + linear(z).view(-1, CHANNELS, side, side), nodes, labels)
            x = nodes[-1]
        x = self.paint(F.leaky_relu(self.norm(x, labels), 0.2))
        return {"pixel_values": self.last(torch.tanh(x)), "labels": labels}


def arc(
    teacher: nn.Module, config: Start, spec: ImageSpec, images: None = None, *, cells: Cells = RESNET18,
    steps: int = 70_000, warmup: int = 10_000, calibration: int = 100, batch_size: int = 16, lr: float = 1e-6,
    seed: int = 0, loop: Loop | None = None, folder: Path | None = None,
) -> nn.Module:  # fmt: skip
    """A quantized student of `teacher` without data, from the generator that was found for a teacher like it.

    Stages and defaults as in `gdfq`. Raises ValueError for a teacher without BatchNorm2d.
    """
    return learn(
        classifier(teacher), config, SearchedGenerator(spec, batch_size, cells, seed=seed), spec,
        steps=steps, warmup=warmup, calibration=calibration, lr=lr, loop=loop, folder=folder,
    )  # fmt: skip
