"""zsaq: data-free quantization. Every public name, in the order of a run."""

from zsaq.api import methods, quantize
from zsaq.comparing import compare
from zsaq.deploy.runtimes import export
from zsaq.io.corpus import Corpus
from zsaq.io.saving import save
from zsaq.method import Budget, Method
from zsaq.quant.adapter import ZsaqConfig
from zsaq.quant.config import Grid, QuantConfig
from zsaq.quant.layers import parameter_groups
from zsaq.quant.model import coverage, quantize_model
from zsaq.quant.quantizer import Quantizer
from zsaq.quant.ranges import EMAMinMax, MinMax, MSEOptimal, Range, Static
from zsaq.report.card import Card
from zsaq.report.comparison import Comparison
from zsaq.report.hub import push_to_hub
from zsaq.run import Results
from zsaq.streaming import quantize_files
from zsaq.student import load
from zsaq.synthesizing import synthesize_text
from zsaq.train.checkpoint import Checkpoint
from zsaq.train.correction import correct_batch_norm
from zsaq.train.gptq import compensate
from zsaq.train.inundation import GradientInundation, weight_codes
from zsaq.train.loop import Loop
from zsaq.train.objectives import (
    CE,
    KL,
    AtWorstInput,
    HiddenStates,
    LayerWise,
    LogitL1,
    LogitMSE,
    Objective,
    RelativeMSE,
)
from zsaq.train.one_pass import one_pass
from zsaq.train.optim import Clip, Wrapper
from zsaq.train.pair import Batch, Capture, Out, Pair
from zsaq.train.reconstruction import reconstruct
from zsaq.train.sam import SAM
from zsaq.train.stages import stage
from zsaq.train.streams import repeat
from zsaq.train.synthesis import Source, Synthesizer, synthesize
from zsaq.train.trainer import Adversary, calibrate, distill
from zsaq.vision.image_spec import ImageSpec

gptq = compensate  # the name that it had before convolutions

__version__ = "0.1.0"

__all__ = [
    "quantize", "quantize_files", "compare", "methods", "synthesize_text", "Corpus",
    "load", "save", "export", "push_to_hub", "coverage",
    "ZsaqConfig", "QuantConfig", "Grid", "ImageSpec", "Method", "Budget", "Results", "Comparison", "Card",
    "quantize_model", "Quantizer", "Range", "MinMax", "MSEOptimal", "Static", "EMAMinMax",
    "calibrate", "one_pass", "compensate", "correct_batch_norm", "gptq", "reconstruct", "distill", "repeat", "Loop",
    "Adversary", "parameter_groups",
    "Batch", "Pair", "Out", "Capture", "Objective", "KL", "CE", "LogitL1", "LogitMSE", "RelativeMSE",
    "HiddenStates", "LayerWise", "AtWorstInput", "SAM", "Clip", "Wrapper", "GradientInundation", "weight_codes",
    "Source", "Synthesizer", "synthesize", "Checkpoint", "stage",
]  # fmt: skip
