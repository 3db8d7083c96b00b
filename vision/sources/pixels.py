"""Images that are parameters themselves, and the labels they are made for."""

from typing import final

import torch
from torch import Tensor, nn

from zsaq.train.amounts import check_counts
from zsaq.train.pair import Batch
from zsaq.train.randomness import generator
from zsaq.train.synthesis import Source, process_index, seed_of
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.sources.crops import random_crops


def uniform_labels(n: int, spec: ImageSpec, seed: int = 0) -> Tensor:
    """`n` labels drawn uniformly with replacement, int64 [n]."""
    return torch.randint(spec.classes, (n,), generator=torch.Generator().manual_seed(seed))


@final
class Pixels(Source):
    """`n` images in normalised space, [n, channels, size, size], from N(0, 1) or from `init`.

    Every forward gives all of them, with `labels` if there are any: int64 [n], or float [n, classes]. Raises ValueError
    if shapes do not fit. Several processes hold the same images.
    """

    labels: Tensor | None

    def __init__(
        self, n: int, spec: ImageSpec, labels: Tensor | None = None, *, init: Tensor | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        shape = (n, spec.channels, spec.size, spec.size)
        check_counts(n=n)
        if (init is not None and init.shape != shape) or (labels is not None and len(labels) != n):
            given = (
                f"init {init if init is None else tuple(init.shape)}, {None if labels is None else len(labels)} labels"
            )
            raise ValueError(f"n is {n}, with {given}; give init of shape {shape} and {n} labels")
        if init is None:
            init = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        self.pixels = nn.Parameter(init.detach().float().clone())
        self.register_buffer("labels", labels)

    def forward(self) -> Batch:
        # A copy, so that a batch given away does not change with the next step.
        batch = {"pixel_values": self.pixels.clone()}
        return batch if self.labels is None else {**batch, "labels": self.labels}


@final
class Unrolled(Source):
    """Images [n, C, S, S] that are their own latents [n, C * S * S]: where latents are moved and there is no generator.

    `decoder` only folds them. No labels.
    """

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.latents = nn.Parameter(images.detach().float().flatten(1).clone())
        self.decoder = nn.Unflatten(1, images.shape[1:])

    def forward(self) -> Batch:
        return {"pixel_values": self.decoder(self.latents.clone())}


@final
class Cropped(Source):
    """What `source` gives, and in a `share` of the calls random crops of it (IntraQ's local object reinforcement).

    Zhong et al. 2022, arXiv 2111.09136, sec. 3.2: so that an object is found at every size. One draw for the whole
    batch. The source itself gives the whole images in the end.
    """

    def __init__(
        self, source: Source, scale: tuple[float, float] = (0.5, 1.0), share: float = 0.5, seed: int = 0
    ) -> None:
        super().__init__()
        if not 0 <= share <= 1:
            raise ValueError(f"share is {share}; give a share of the calls, 0 to 1")
        self.source, self.scale, self.share = source, scale, share
        self.rng = generator(seed_of(seed, process_index()))

    def forward(self) -> Batch:
        batch = self.source()
        if torch.rand((), generator=self.rng) >= self.share:
            return batch
        return {**batch, "pixel_values": random_crops(batch["pixel_values"], self.scale, self.rng)}
