"""SynQ (Kim et al. 2025, "Synthesis-aware Fine-tuning for Zero-shot Quantization", ICLR): what to make of any images.

Synthetic images are noisy, a student that learns from them looks at the wrong spot, and their labels may be wrong. So
images are low-pass filtered, activation maps are aligned, and only labels of images that the teacher finds easy count.
"""

from collections.abc import Iterable
from pathlib import Path

from torch import nn

from zsaq.quant.config import QuantConfig
from zsaq.train.amounts import check_counts
from zsaq.train.loop import Loop
from zsaq.train.objectives import CE, KL, AtWorstInput, Sum
from zsaq.train.pair import Batch
from zsaq.train.streams import Mapped
from zsaq.vision.beginning import Start, begun
from zsaq.vision.fine_tuning import fine_tune
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.losses.features import ActivationMap, ChannelAttention
from zsaq.vision.losses.labels import EasyCE, labelled
from zsaq.vision.losses.priors import BatchNormStats, TeacherCE, layered
from zsaq.vision.models import classifier, feature_places
from zsaq.vision.papers.genie import genie
from zsaq.vision.papers.texq import centres
from zsaq.vision.pictures import grid, spectrum
from zsaq.vision.sources.crops import views
from zsaq.vision.sources.optimised import optimised_images
from zsaq.vision.spectrum import low_pass


def synq_images(
    teacher: nn.Module, spec: ImageSpec, *, images: int = 5120, batch_size: int = 256, steps: int = 1000,
    lr: float = 0.5, stats: float = 0.4, hard: float = 0.1, focus: float = 0.5, centred: float = 0.02,
    centre_steps: int = 1500,
    crops: float = 0.5, seed: int = 0, folder: Path | None = None,
) -> Batch:  # fmt: skip
    """The paper's own images (its appendix D): HAST's, drawn towards TexQ's calibration centres in the deep layers.

    stats * BatchNormStats + hard * focal CE + centred * BatchNormStats of the deep layers with the centres' statistics,
    for which one image a class is made first. centred=0 makes none; then stats=1 gives HAST's. Defaults are those of
    ImageNet; CIFAR's are HAST's: hard=10, focus=2, crops=0. Raises ValueError as `hast_images` does.
    """
    teacher = classifier(teacher)
    objective = stats * BatchNormStats(teacher) + hard * TeacherCE(focus)
    if centred:
        targets = centres(teacher, spec, batch_size=batch_size, steps=centre_steps, seed=seed)
        objective += centred * BatchNormStats(teacher, weights=layered(teacher, 0.0, 1.0), targets=targets)
    return optimised_images(
        teacher, objective, spec, images=images, batch_size=batch_size, steps=steps, lr=lr, crops=crops,
        scale=(0.4, 1.0), seed=seed, folder=folder, stage="synq",
    )  # fmt: skip


def filtered(images: Batch, cutoff: float | None) -> Batch:
    """`images` with their pixels behind `low_pass`; None leaves them as they are."""
    return images if cutoff is None else {**images, "pixel_values": low_pass(images["pixel_values"], cutoff)}


def synq_objective(
    teacher: nn.Module, images: Batch, *, labels: float, difficulty: float | None, maps: float, attention: float,
    epsilon: float | None,
) -> Sum:  # fmt: skip
    """20 T^2 KL (T = 20) + labels * EasyCE(difficulty) + maps * ActivationMap (eq. 6), and what HAST adds to it."""
    clean = 20 * KL(20.0) + labels * (CE() if difficulty is None else EasyCE(difficulty))
    if attention:
        clean += attention * ChannelAttention(feature_places(teacher))
    total = clean if epsilon is None else clean + 1.0 * AtWorstInput(clean, epsilon)
    return total + maps * ActivationMap(teacher, images["pixel_values"]) if maps else total


def synq(
    teacher: nn.Module, config: Start, spec: ImageSpec, images: Batch, *, steps: int = 19_400,
    batch_size: int = 16, lr: float = 1e-6, cutoff: float | None = 0.25, labels: float = 0.5,
    difficulty: float | None = 0.5, maps: float = 50.0, attention: float = 0.0, epsilon: float | None = None,
    seed: int = 0, loop: Loop | None = None, folder: Path | None = None, ranges: Iterable[Batch] | None = None,
) -> nn.Module:  # fmt: skip
    """A student fine-tuned on `images` of any source; images without labels get the teacher's answers as such.

    In the place of `config` may stand a student that another method made of the same teacher, such as Genie's: it is
    trained on as it is, what it holds trainable, and its ranges are kept.

    The three parts, and how to leave each out: the filter (`cutoff` in cycles per pixel, see `low_pass`; None), the
    activation maps (weight `maps`; 0), labels of easy images alone (`difficulty`; None takes all labels). `labels`
    weighs the cross-entropy. From HAST, as in the released code but not in the paper's eq. 6: `attention` (there 1000)
    and a second look, without maps, at the worst input within `epsilon` (there 0.01). Static ranges are those of the
    filtered images, or of the `ranges` given, which are not filtered; the paper takes the images of a GDFQ generator
    for that and throws it away. Weights are the released ones for 3 bits on ImageNet; for CIFAR take batch_size=256,
    lr=1e-5 and, for 10 classes, difficulty=0.7. `folder` is where pictures go, before and after the filter.

    Raises ValueError as `fine_tune` does, for maps of a single position, and for `ranges` beside a student that has its
    own.
    """
    check_counts(steps=steps, batch_size=batch_size)
    fresh = isinstance(config, QuantConfig)
    if ranges is not None and not fresh:
        raise ValueError("ranges are given for a student that is trained on as it is; leave them off, it keeps its own")
    teacher, loop = classifier(teacher), loop or Loop()
    teacher.to(loop.accelerator.device).eval()
    images = labelled(teacher, images)
    clear = filtered(images, cutoff)
    if folder is not None:
        shown = None if cutoff is None else clear
        grid(images, folder / "filter.png", filtered=shown)
        spectrum(images, folder / "filter-spectrum.png", filtered=shown)
    objective = synq_objective(
        teacher, clear, labels=labels, difficulty=difficulty, maps=maps, attention=attention, epsilon=epsilon
    )
    return fine_tune(
        begun(teacher, config), teacher, clear, objective,
        steps=steps, lr=lr, batch_size=batch_size, loop=loop, ranges=ranges,
        batches=Mapped(lambda view: filtered(view, cutoff), views(images, batch_size, seed)),
    )  # fmt: skip


def genie_synq(
    teacher: nn.Module, config: QuantConfig, spec: ImageSpec, images: Batch, *, steps: int = 20_000,
    batch_size: int = 32, tuning_steps: int = 19_400, tuning_batch_size: int = 16, lr: float = 1e-6,
    cutoff: float = 0.25, difficulty: float = 0.5, seed: int = 0, loop: Loop | None = None, folder: Path | None = None,
) -> nn.Module:  # fmt: skip
    """SynQ on Genie: a student that `genie` makes of the filtered images, `steps` steps a block, then `synq`.

    SynQ takes `tuning_steps` of `tuning_batch_size` images; the labels are those of `images` or the teacher's answers.
    Raises ValueError as both do.
    """
    check_counts(steps=steps, batch_size=batch_size, tuning_steps=tuning_steps, tuning_batch_size=tuning_batch_size)
    clear = filtered(images, cutoff)
    student = genie(teacher, config, spec, clear, steps=steps, batch_size=batch_size, seed=seed, loop=loop)
    return synq(
        teacher, student, spec, images, steps=tuning_steps, batch_size=tuning_batch_size, lr=lr, cutoff=cutoff,
        difficulty=difficulty, seed=seed, loop=loop, folder=folder,
    )  # fmt: skip
