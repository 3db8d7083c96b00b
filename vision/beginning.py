"""What a method of fine-tuning begins with: a fresh student, or one that another method has fitted already."""

from torch import nn

from zsaq.quant.config import QuantConfig
from zsaq.quant.model import quantize_model

Start = QuantConfig | nn.Module
"""A configuration, or a student that another method made of the same teacher, such as Genie's or one of `onepass`: it
is trained on as it is, what it holds trainable, and the static ranges that it has stay."""


def begun(teacher: nn.Module, config: Start) -> nn.Module:
    """The student to train, in float32 where the teacher has 16 bits, which would round small steps away; raises
    ValueError as `zsaq.quantize_model` does."""
    if not isinstance(config, QuantConfig):
        return config
    student = quantize_model(teacher, config)
    return student.float() if any(each.dtype.itemsize < 4 for each in student.parameters()) else student
