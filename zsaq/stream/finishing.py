"""What lies beside the weights of a student that was written block by block."""

from pathlib import Path

import torch
from transformers import GenerationConfig

from zsaq.quant.adapter import ZsaqConfig, untie
from zsaq.quant.guard import check_header
from zsaq.quant.model import coverage
from zsaq.quant.packed_model import pack_plan
from zsaq.quant.plan import Plan
from zsaq.stream.skeleton import Skeleton
from zsaq.stream.weights import Weights


def finish(source: Path, folder: Path, plan: Plan, dtype: torch.dtype | None) -> dict[str, str]:
    """Write the configs of a student whose weights lie in `folder`, and check that these are what it is made of; what
    was done to each of its modules."""
    model = Skeleton.of(source).model
    untie(model, plan)
    pack_plan(model, plan)
    check_header(model, Weights(folder).header)
    model.config.quantization_config = ZsaqConfig(plan)
    model.config.architectures = [type(model).__name__]
    if dtype is not None:
        model.config.dtype = dtype
    model.config.save_pretrained(folder)
    if (source / "generation_config.json").is_file():
        GenerationConfig.from_pretrained(source).save_pretrained(folder)
    elif model.can_generate() and model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    return coverage(model)
