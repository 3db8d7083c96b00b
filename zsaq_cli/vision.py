"""`zsaq quantize` for image classifiers."""

from typing import Any

import torch
from transformers import AutoImageProcessor, PreTrainedModel

from zsaq import Batch, Loop, QuantConfig, calibrate, quantize_model
from zsaq.vision import presets
from zsaq.vision.fine_tuning import parts
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.models import spec_of
from zsaq.vision.papers.gdfq import gdfq
from zsaq.vision.papers.genie import genie
from zsaq.vision.papers.hast import hast, hast_images
from zsaq.vision.papers.psaq import DEVIATION, MEAN, psaq
from zsaq.vision.papers.synq import synq, synq_images
from zsaq.vision.papers.zeroq import zeroq
from zsaq.vision.published import published
from zsaq_cli.making import Request

METHODS = ("rtn", "zeroq", "psaq", "gdfq", "hast", "synq", "genie")


def quantize(
    teacher: PreTrainedModel, kind: str, request: Request, loop: Loop
) -> tuple[PreTrainedModel, tuple[Any, ...]]:
    """The student and its image processor. Raises ValueError for bits, methods or presets that do not exist."""
    if request.method not in METHODS:
        raise ValueError(f"method is {request.method!r}; for images give one of {', '.join(METHODS)}")
    if request.generator is not None:
        raise ValueError(f"generator is {request.generator!r}; methods for images bring their own: leave it off")
    try:
        processor = AutoImageProcessor.from_pretrained(request.model, backend="pil")
    except (OSError, ValueError):
        processor = None
    spec = spec_of(teacher, request.size or (processor and shown_size(processor)))
    return fit(teacher, processor, spec, request, loop), (processor,) if processor else ()


def fit(teacher: PreTrainedModel, processor: Any, spec: ImageSpec, request: Request, loop: Loop) -> Any:
    config = config_of(request.preset, request.bits, teacher, spec)
    n, steps, image_steps, seed = request.images, request.steps, request.image_steps, request.seed
    pictures = request.folder / "pictures" / request.method
    told: dict[str, Any] = {"seed": seed, "folder": pictures}
    made: dict[str, Any] = {"images": n, "batch_size": min(n, 128), "steps": image_steps, **told}
    fitted: dict[str, Any] = {"steps": steps, "batch_size": min(n, 64), "seed": seed, "loop": loop}
    match request.method:
        case "rtn":
            shape = (n, spec.channels, spec.size, spec.size)
            noise: Batch = {"pixel_values": torch.randn(shape, generator=torch.Generator().manual_seed(seed))}
            return calibrate(quantize_model(teacher, config), parts(noise, 64), loop.accelerator)
        case "zeroq":
            return zeroq(teacher, config, spec, n=n, steps=image_steps, loop=loop, **told)
        case "psaq":
            mean, deviation = normalisation(processor, spec.channels)
            return psaq(
                teacher, config, spec, images=n, steps=image_steps, mean=mean, deviation=deviation, loop=loop, **told
            )
        case "gdfq":
            options = {"warmup": 3 * steps, "calibration": 10, "folder": pictures, **published(gdfq, spec)}
            return gdfq(teacher, config, spec, **options, **fitted)
        case "hast":
            images = hast_images(teacher, spec, **made, **published(hast_images, spec))
            return hast(teacher, config, images, **published(hast, spec), **fitted)
        case "synq":
            images = synq_images(teacher, spec, **made, **published(synq_images, spec), centre_steps=image_steps)
            return synq(teacher, config, images, **published(synq, spec), **fitted)
        case _:
            return genie(
                teacher,
                config,
                spec,
                images=n,
                steps=image_steps,
                unit_steps=steps,
                batch_size=min(n, 32),
                loop=loop,
                **told,
            )


def config_of(preset: str, bits: str, teacher: PreTrainedModel, spec: ImageSpec) -> QuantConfig:
    match preset:
        case "brecq":
            return presets.brecq(bits, teacher, spec)
        case "uniform":
            return presets.uniform(bits, teacher)
        case "psaq":
            return presets.psaq(bits, teacher)
    raise ValueError(f"preset is {preset!r}; give brecq, uniform or psaq")


def shown_size(processor: Any) -> int:
    """The side of what the processor makes of a square picture."""
    from PIL import Image

    blank = Image.new("RGB", (256, 256))
    return processor(images=blank, return_tensors="pt")["pixel_values"].shape[-1]


def normalisation(processor: Any, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation that the processor normalises each channel by; ImageNet's without a processor."""
    if processor is None:
        return MEAN[:channels], DEVIATION[:channels]
    told = processor.to_dict()
    if not told["do_normalize"]:
        return (0.0,) * channels, (1.0,) * channels
    return tuple(told["image_mean"]), tuple(told["image_std"])
