"""The images that the rows of the table name: synthetic ones by who makes them, noise, real ones, one's own."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from zsaq.train.logging import say
from zsaq.train.pair import Batch
from zsaq.train.synthesis import process_index
from zsaq.vision.job import ImageJob
from zsaq.vision.papers.dsg import dsg_images
from zsaq.vision.papers.genie import genie_images, genie_sources
from zsaq.vision.papers.hast import hast_images
from zsaq.vision.papers.intraq import intraq_images
from zsaq.vision.papers.plf import plf_images
from zsaq.vision.papers.psaq import psaq_images
from zsaq.vision.papers.synq import synq_images
from zsaq.vision.papers.zeroq import zeroq_images
from zsaq.vision.published import published
from zsaq.vision.sources.pink import pink_images
from zsaq.vision.sources.pyramid import pyramid_images
from zsaq.vision.sources.swing import Latents

AT_ONCE = 128  # images that are optimised together, where the paper does not make it part of the method
SMALL = 64  # pixels of an image, up to which a decoder of Genie's is small beside other things
MAKERS: dict[str, Callable[..., Batch]] = {
    "zeroq": zeroq_images,
    "dsg": dsg_images,
    "intraq": intraq_images,
    "plf": plf_images,
    "hast": hast_images,
    "synq": synq_images,
    "psaq": psaq_images,
    "pyramid": pyramid_images,
}


def images_of(
    job: ImageJob, name: str, seed: int, *, images: int = 0, steps: int = 0
) -> Batch | list[Latents] | Iterable[Batch]:
    """`images` images by the name of who makes them, in `steps` steps a batch; made once for each job and numbers.

    "noise", "pink" and "real" take no steps, "given" is the job's own as it is, and "sources" are Genie's, trained,
    from which its images come. Raises ValueError for real or given images that the job does not have, and as the makers
    do.
    """
    key = (name, seed, images, steps)
    match name:
        case "given":
            if job.given is None:
                raise ValueError("there are no images of your own: give batches, each with pixel_values [B, C, S, S]")
            return job.given
        case "noise":
            return job.once(key, lambda: gaussian(job, images, seed))
        case "pink":
            return job.once(key, lambda: job.processed(pink_images(job.spec, images=images, seed=seed)["pixel_values"]))
        case "real":
            return job.once(key, lambda: real(job, images, seed))
        case "genie":
            return genies(job, images, steps, seed, job.spec.size <= SMALL)[1]
        case "sources":
            return genies(job, images, steps, seed, True)[0]
    settings = published(MAKERS[name], job.spec) | own_settings(job, name, images, steps)
    folder = job.folder(name, seed)
    return job.once(
        key,
        lambda: MAKERS[name](
            job.teacher, job.spec, images=images, steps=steps, seed=seed, folder=folder, **settings
        ),
    )  # fmt: skip


def own_settings(job: ImageJob, name: str, images: int, steps: int) -> dict[str, Any]:
    """What a maker needs of the job, and how many of its images it optimises at once."""
    match name:
        case "psaq":
            return {**job.normalised}
        case "intraq":  # several batches: it keeps each away from the centres of those before it
            return {"batch_size": min(AT_ONCE, max(1, images // 4))}
        case "synq":
            return {"batch_size": min(images, AT_ONCE), "centre_steps": steps}
        case "plf" | "hast":
            return {"batch_size": min(images, AT_ONCE)}
    return {}


def genies(job: ImageJob, images: int, steps: int, seed: int, kept: bool) -> tuple[list[Latents], Batch]:
    """Genie's sources, trained, and their images; without `kept` there are no sources, unless they were made before.

    Up to `SMALL` pixels a group's decoder is 9 MB; at 224 pixels it is 412 MB, and they are held for nobody but SADAG,
    for which they are made anew where Genie's images were made first: the same, to the bit.
    """
    options: dict[str, Any] = {"images": images, "steps": steps, "group": AT_ONCE, "seed": seed}
    options["folder"] = job.folder("genie", seed)
    numbers = ("genie", seed, images, steps)
    if kept or (*numbers, "sources") in job.cache:
        return job.once((*numbers, "sources"), lambda: genie_sources(job.teacher, job.spec, **options))
    return job.once(numbers, lambda: ([], genie_images(job.teacher, job.spec, **options)))


def gaussian(job: ImageJob, images: int, seed: int) -> Batch:
    """`images` images from N(0, 1), in ImageNet's units, as the job's processor has them."""
    shape = (images, job.spec.channels, job.spec.size, job.spec.size)
    return job.processed(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


def real(job: ImageJob, images: int, seed: int) -> Batch:
    """`images` real images of the job's spec. Not zero-shot. Raises ValueError where these are not there."""
    if job.real is None:
        raise ValueError("there are no real images, which this row reads: give some, or take a row that is zero-shot")
    pixels, sides = job.real(), (job.spec.channels, job.spec.size, job.spec.size)
    if not isinstance(pixels, Tensor) or not pixels.is_floating_point() or tuple(pixels.shape[1:]) != sides:
        what = f"{pixels.dtype} {list(pixels.shape)}" if isinstance(pixels, Tensor) else f"a {type(pixels).__name__}"
        wanted = ", ".join(map(str, sides))
        raise ValueError(f"real() answers {what}; make it answer one tensor of floats [N, {wanted}]")
    if not len(pixels):
        raise ValueError(f"real() answers no image, and {images} are asked for: give some")
    if len(pixels) < images and process_index() == 0:
        say(f"real() answers {len(pixels)} images of the {images} asked for: the row is of {len(pixels)}")
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(seed))
    return {"pixel_values": pixels.detach()[order[:images]]}
