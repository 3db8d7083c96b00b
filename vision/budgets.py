"""What the table's methods count, at each effort: light, default, the paper's for ImageNet.

`images` that are synthesized beforehand, `image_steps` of each batch of them, `warmup` steps of a generator alone,
`steps` of `batch_size` images that the student takes, of each block where blocks are reconstructed, and
`tuning_steps` of the whole student after those.
"""

Counts = dict[str, tuple[int, int, int]]

NOISE: Counts = {"images": (128, 128, 128)}
ZEROQ: Counts = {"images": (64, 64, 64), "image_steps": (200, 500, 500)}
PSAQ: Counts = {"images": (32, 32, 32), "image_steps": (200, 1000, 1000)}
IMAGES: Counts = {"images": (128, 256, 5120), "image_steps": (200, 1000, 1000)}
GENIE: Counts = {"images": (128, 256, 1024), "image_steps": (200, 1000, 4000)}
ONEPASS: Counts = {"images": (64, 128, 256), "image_steps": (60, 60, 200)}
MORE: Counts = ONEPASS | {"images": (128, 256, 512), "steps": (200, 600, 2000), "batch_size": (32, 32, 32)}
TUNED: Counts = {"tuning_steps": (90, 200, 2000)}
KL_STEPS: Counts = {"steps": (90, 1000, 4000), "batch_size": (32, 32, 32)}
PYRAMID: Counts = {"images": (64, 256, 1024), "image_steps": (60, 200, 1000)}
GENERATOR: Counts = {"warmup": (600, 6000, 10_000), "calibration": (10, 100, 100)}
BLOCKS: Counts = {"steps": (200, 2000, 20_000), "batch_size": (32, 32, 32)}
STEPS_OF_BLOCKS = "images, then steps of every block"
OF_PSAQ: Counts = BLOCKS | {"steps": (200, 1000, 1000)}
SHARPER: Counts = {"warm_steps": (40, 400, 4000), "sharpening": (25, 125, 500)}


def steps(best: int) -> Counts:
    """Of a student that is fine-tuned; `best` are the paper's."""
    return {"steps": (200, 2000, best), "batch_size": (64, 64, 16)}


def only_images(counts: Counts) -> Counts:
    """Those of images that take no steps."""
    return {"images": counts["images"]}


def only_steps(counts: Counts) -> Counts:
    """Those of images that are given."""
    return {name: counts[name] for name in counts if name != "image_steps"}
