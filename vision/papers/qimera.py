"""Qimera (Choi et al. 2021, arXiv 2111.02625): GDFQ with superposed classes, whose images lie near class boundaries.

The labels' embeddings start as the rows of the teacher's classifier; a mixture of several gives an image between them.
"""

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
from zsaq.vision.heads import head
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.models import classifier
from zsaq.vision.papers.gdfq import learn
from zsaq.vision.sources.generators import Decoder, check_batch, embedded_labels, seeded


@final
class Superposed(Source):
    """Images of classes and of their mixtures; labels are soft, float [B, classes].

    A latent is norm(e_y + z), z ~ N(0, I), norm over its numbers. In a `share` of the batches it is the sum over `mix`
    classes, drawn with replacement, of lambda_k norm(e_k + z_k), lambda = softmax of N(0, I), and so is the label. A
    linear layer maps it to 100 numbers (the paper's disentanglement mapping) for GDFQ's decoder, whose conditional
    norms mix by the label. `embedding` [classes, width] is where e starts.
    """

    def __init__(
        self, spec: ImageSpec, batch_size: int, embedding: Tensor, *, share: float = 0.4, mix: int = 2, seed: int = 0
    ) -> None:
        super().__init__()
        check_batch(batch_size)
        if not 0 <= share <= 1 or mix < 1:
            raise ValueError(f"share is {share}, mix {mix}; give 0 to 1, and at least 1")
        if embedding.ndim != 2 or len(embedding) != spec.classes:
            raise ValueError(
                f"the embedding is {tuple(embedding.shape)}; give a row for each of {spec.classes} classes"
            )
        self.spec, self.batch_size, self.share, self.mix = spec, batch_size, share, mix
        self.embedding = nn.Parameter(embedding.detach().float().clone())
        with seeded(seed):
            self.mapping = nn.Linear(embedding.shape[1], 100)
            self.decoder = Decoder(spec, 100, by_label=spec.size > 64)
        self.rng = generator(seed_of(seed, process_index()))

    def forward(self) -> Batch:
        device, width = self.embedding.device, self.embedding.shape[1]
        mix = self.mix if torch.rand((), generator=self.rng) < self.share else 1
        classes = torch.randint(self.spec.classes, (self.batch_size, mix), generator=self.rng).to(device)
        weights = torch.randn(self.batch_size, mix, generator=self.rng).softmax(1).to(device)
        noise = torch.randn(self.batch_size, mix, width, generator=self.rng).to(device)
        parts = F.layer_norm(embedded_labels(self.embedding, classes) + noise, (width,))
        latent = self.mapping((weights[:, :, None] * parts).sum(1))
        labels = torch.zeros(self.batch_size, self.spec.classes, device=device).scatter_add_(1, classes, weights)
        return {"pixel_values": self.decoder(latent, labels), "labels": labels}


def qimera(
    teacher: nn.Module, config: Start, spec: ImageSpec, images: None = None, *, share: float = 0.4,
    mix: int = 100, from_teacher: bool = True, steps: int = 70_000, warmup: int = 10_000, calibration: int = 100,
    batch_size: int = 16, lr: float = 1e-6, seed: int = 0, loop: Loop | None = None, folder: Path | None = None,
) -> nn.Module:  # fmt: skip
    """A quantized student of `teacher` without data; stages and defaults as in `gdfq`.

    `from_teacher`: embeddings start as the rows of the classifier, else from N(0, I). Published (share, mix) at 4 bits:
    CIFAR-100 (0.4, 10), ImageNet ResNet-50 (0.7, 500); and from N(0, I) CIFAR-10 (0.4, 2), ResNet-18 (0.4, 500),
    MobileNetV2 (0.4, 100). Raises ValueError for a teacher without BatchNorm2d or a linear head.
    """
    teacher = classifier(teacher)
    start = head(teacher, spec).weight
    if not from_teacher:
        start = torch.randn(start.shape, generator=torch.Generator().manual_seed(seed))
    return learn(
        teacher, config, Superposed(spec, batch_size, start, share=share, mix=mix, seed=seed), spec,
        steps=steps, warmup=warmup, calibration=calibration, lr=lr, loop=loop, folder=folder,
    )  # fmt: skip
