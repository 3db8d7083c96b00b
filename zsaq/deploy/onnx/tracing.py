"""A model as torch's exporter sees it: its inputs, which of their dimensions vary, and the graph that comes out."""

import warnings
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from zsaq.deploy.foreign import in_one_line
from zsaq.deploy.onnx.attention import Attention
from zsaq.io.inputs import answers_of, random_inputs, text_limit

OPSET: Final = 20
TOKENS: Final = 8  # of a text that is traced
TORCH: Final = "run it in torch: zsaq.load(DIR)"


class Answers(nn.Module):
    """Tensors in the order of `names` to the model's answers."""

    def __init__(self, model: PreTrainedModel, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(answers_of(self.model(**dict(zip(self.names, inputs, strict=True)))).values())


def example(model: PreTrainedModel, size: tuple[int, int] | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Inputs to trace with, and which of their dimensions vary. Raises ValueError as `random_inputs` does."""
    batch = torch.export.Dim("batch", min=1, max=4096)
    if model.main_input_name == "pixel_values":
        return random_inputs(model, (2,), size=size), {"pixel_values": {0: batch}}
    most = text_limit(model)
    inputs = random_inputs(model, (2, min(TOKENS, most)), size=size)
    length, answer = (torch.export.Dim(name, min=1, max=max(2, most)) for name in ("length", "decoder_length"))
    return inputs, {name: {0: batch, 1: answer if name.startswith("decoder") else length} for name in inputs}


def trace(
    model: PreTrainedModel, optimize: bool = False, size: tuple[int, int] | None = None, fusing: bool = True
) -> tuple[Any, dict[str, Tensor]]:
    """The graph (onnx.ModelProto) of a model whose packed layers are operators, and the inputs it was traced with.

    `optimize`: fold what is constant, for floats; it would widen the codes of small layers in the file. `size`: of
    images. `fusing`: see `Attention`. Raises ValueError for a model that takes no such inputs, and one that torch
    cannot write as a graph.
    """
    inputs, varying = example(model, size)
    names = list(inputs)
    attention = Attention(model, fusing)
    if hasattr(model.config, "_experts_implementation"):
        model.set_experts_implementation("batched_mm")  # the one whose shapes do not depend on values
    model.config.use_cache = False
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's own
        with in_one_line(model, f"does not run on random inputs {shapes_of(inputs)}", TORCH):
            answers = list(answers_of(attention.choose(model, inputs)))
        if attention.unknown:
            raise ValueError(
                f"{type(model).__name__} cannot be written as an ONNX graph: what {attention.unknown[0]} computes for "
                f"attention cannot be found; {TORCH}"
            )
        with in_one_line(model, "cannot be written as an ONNX graph", TORCH):
            program = torch.onnx.export(
                Answers(model, names).eval(), tuple(inputs.values()), dynamo=True, opset_version=OPSET,
                optimize=optimize, input_names=names, output_names=answers, dynamic_shapes=(tuple(varying.values()),),
                verbose=False,
            )  # fmt: skip
    assert program is not None
    proto = program.model_proto
    check_varying(model, proto, varying)
    return proto, inputs


def shapes_of(inputs: dict[str, Tensor]) -> str:
    return ", ".join(f"{name} {' x '.join(map(str, value.shape))}" for name, value in inputs.items())


def check_varying(model: nn.Module, proto: Any, varying: dict[str, Any]) -> None:
    """Raises ValueError for a graph in which a dimension that varies was fixed by the trace."""
    for value in proto.graph.input:
        sizes = value.type.tensor_type.shape.dim
        if fixed := [(i, sizes[i].dim_value) for i in varying[value.name] if not sizes[i].dim_param]:
            raise ValueError(
                f"{type(model).__name__} cannot be written as an ONNX graph: its code fixes dimension "
                f"{fixed[0][0]} of {value.name} to {fixed[0][1]}; {TORCH}"
            )
