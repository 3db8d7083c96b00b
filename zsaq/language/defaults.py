"""What a language model gets of whom nothing but its name was said."""

import math
from typing import Final, Literal

from torch import nn

from zsaq.language.models import TaskKind, pretrained
from zsaq.method import Effort, Method
from zsaq.quant.config import QuantConfig
from zsaq.quant.experts import weighted
from zsaq.quant.layers import weight_rows
from zsaq.quant.plan import make_plan

GROUP: Final = 32  # weights that share a scale
ENDS: Final = "e8h8"  # table and head
SCALES: Final = "-s16"  # half a bit a weight less in groups of 32, for 2^-12 of a scale
LEAST: Final = 8  # below it scales outweigh what groups win
BARE_VISION: Final = "w4a16"  # of what reads images and is no classifier
OTHERS: Final = "w4a8"  # of classifiers, encoders and images
# Batches of a causal model's own text, ten of which are written at once.
CALIBRATION: Final[dict[Effort, int]] = {"light": 5, "default": 10, "best": 40}


def usual_bits(model: nn.Module, kind: TaskKind | Literal["image"] | None) -> tuple[str, str]:
    """The quantization of a model for which none was named, as a text, and what it means.

    A causal language model: weights of 4 bits in groups of GROUP, or of the largest power of two below it that divides
    the inputs of every layer, with table and head at 8 bits, scales of float16, and inputs in floats: what
    came nearest at about 4 bits.
    All else: weights of 4 bits and inputs of 8; but for what reads images and is no classifier, whose convolutions
    would need ranges that only a classifier's methods have images for: weights alone.
    """
    if kind is None and pretrained(model).main_input_name == "pixel_values":
        return BARE_VISION, "weights of 4 bits, inputs in floats, as it is no classifier of images"
    if kind != "causal":
        return OTHERS, "weights of 4 bits, inputs of 8"
    bare = make_plan(model, QuantConfig.parse("w4a16e16"))
    modules = weighted(model)  # the layers that fused experts would become
    widths = {weight_rows(modules[name]).shape[1] for name in bare.chosen}
    size = math.gcd(GROUP, *widths)
    groups = f"groups of {size}" if size >= LEAST else "one scale a row"
    why = "" if size == GROUP else f" ({GROUP} does not divide the inputs of every layer)"
    text = f"w4a16{ENDS}g{size}{SCALES}" if size >= LEAST else f"w4a16{ENDS}{SCALES}"
    return text, f"weights of 4 bits, {groups}{why}, scales of float16, table and head of 8"


def usual_options(method: Method, kind: TaskKind | None, effort: Effort) -> dict[str, int]:
    """The counts of a method that was not named, where they are others than a named one's: minutes on two cores for a
    causal model of 135 million parameters."""
    return {"calibration": CALIBRATION[effort]} if method.name == "gptq" and kind == "causal" else {}
