"""zsaq: data-free quantization. Every public name, in the order of a run."""

from zsaq.card import Card
from zsaq.compensation import compensate
from zsaq.config import Grid, QuantConfig
from zsaq.inundation import GradientInundation, weight_codes
from zsaq.layers import parameter_groups
from zsaq.loading import load
from zsaq.manifest import seal
from zsaq.objectives import CE, KL, AtWorstInput, HiddenStates, LayerWise, LogitL1, LogitMSE, Objective
from zsaq.optim import Clip, Wrapper
from zsaq.pair import Batch, Out, Pair, Tap
from zsaq.publish import push_to_hub
from zsaq.quantize import coverage, quantize_model
from zsaq.quantizer import MinMax, Quantizer, Range, Running, Searched
from zsaq.reconstruction import reconstruct
from zsaq.sam import SAM
from zsaq.saving import save
from zsaq.synthesis import Source, dream
from zsaq.trainer import Loop, Player, calibrate, distill, repeat

__version__ = "0.1.0"

__all__ = [
    "AtWorstInput",
    "Batch",
    "CE",
    "Card",
    "Clip",
    "GradientInundation",
    "Grid",
    "HiddenStates",
    "KL",
    "LayerWise",
    "LogitL1",
    "LogitMSE",
    "Loop",
    "MinMax",
    "Objective",
    "Out",
    "Pair",
    "Player",
    "QuantConfig",
    "Quantizer",
    "Range",
    "Running",
    "SAM",
    "Searched",
    "Source",
    "Tap",
    "Wrapper",
    "calibrate",
    "compensate",
    "coverage",
    "distill",
    "dream",
    "load",
    "parameter_groups",
    "push_to_hub",
    "quantize_model",
    "reconstruct",
    "repeat",
    "save",
    "seal",
    "weight_codes",
]
