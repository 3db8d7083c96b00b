"""zsaq: data-free quantization. Every public name, in the order of a run."""

from zsaq.io.checksums import seal
from zsaq.io.loading import load
from zsaq.io.saving import save
from zsaq.quant.config import Grid, QuantConfig
from zsaq.quant.layers import parameter_groups
from zsaq.quant.model import coverage, quantize_model
from zsaq.quant.quantizer import Quantizer
from zsaq.quant.ranges import EMAMinMax, MinMax, MSEOptimal, Range
from zsaq.report.card import Card
from zsaq.report.hub import push_to_hub
from zsaq.train.gptq import gptq
from zsaq.train.inundation import GradientInundation, weight_codes
from zsaq.train.objectives import CE, KL, AtWorstInput, HiddenStates, LayerWise, LogitL1, LogitMSE, Objective
from zsaq.train.optim import Clip, Wrapper
from zsaq.train.pair import Batch, Capture, Out, Pair
from zsaq.train.reconstruction import reconstruct
from zsaq.train.sam import SAM
from zsaq.train.synthesis import Source, synthesize
from zsaq.train.trainer import Adversary, Loop, calibrate, distill, repeat

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
    "Adversary",
    "QuantConfig",
    "Quantizer",
    "Range",
    "EMAMinMax",
    "SAM",
    "MSEOptimal",
    "Source",
    "Capture",
    "Wrapper",
    "calibrate",
    "gptq",
    "coverage",
    "distill",
    "synthesize",
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
