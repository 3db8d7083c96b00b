"""A model without its weights: its modules on the meta device, and the files where the weights lie."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from zsaq.foreign import UNMADE
from zsaq.io.folder import read_config
from zsaq.io.loading import auto_class_of
from zsaq.language.models import blocks, output_layer, task_kind, token_table
from zsaq.quant.experts import fused_weights
from zsaq.stream.weights import Weights

OLD = (r"rotary_emb\.inv_freq", r"(^|\.)position_ids$")  # which older versions of transformers have saved
ROWS = 4096  # that are compared at once
IN_MEMORY = "quantize it in memory, by zsaq.quantize(model); method='rtn' asks nothing of its blocks"


@final
@dataclass(frozen=True)
class Skeleton:
    """A causal language model whose parameters are on the meta device, and its files.

    `blocks`: the names of its transformer blocks, in order; `table`, `head`: those of the token table and of the layer
    that writes tokens, which may share their weight.
    """

    model: PreTrainedModel
    weights: Weights
    blocks: tuple[str, ...]
    table: str
    head: str

    @classmethod
    def of(cls, folder: Path) -> "Skeleton":
        """Of a folder with config.json and safetensors. Raises ValueError for one that is quantized, that is no causal
        language model, and whose files call the weights otherwise than the model does."""
        read_config(folder)
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            if config.to_dict().get("quantization_config"):
                raise ValueError("it is quantized already; give the float model")
        except (OSError, ValueError, *UNMADE) as error:
            raise ValueError(f"{folder} cannot be quantized block by block: {error}") from error
        try:
            model = empty(config)
        except (OSError, ValueError, *UNMADE) as error:
            raise ValueError(f"{folder} cannot be built without its weights ({error}): {IN_MEMORY}") from error
        if task_kind(model) != "causal":
            raise ValueError(f"{type(model).__name__} is no causal language model: {IN_MEMORY}")
        if fused := [name for name, module in model.named_modules() if fused_weights(module)]:
            raise ValueError(f"{fused[0]} holds many experts in one tensor: {IN_MEMORY}")
        names = {id(module): name for name, module in model.named_modules()}
        try:
            table, head = names[id(token_table(model))], names[id(output_layer(model))]
            each = tuple(name for name, _ in blocks(model))
        except (ValueError, *UNMADE) as error:
            raise ValueError(f"{folder} cannot be quantized block by block ({error}): {IN_MEMORY}") from error
        found = cls(model, Weights(folder), each, table, head)
        found.check()
        return found

    @property
    def tied(self) -> bool:
        """Whether the head has the table's weight."""
        return self.model.get_submodule(self.head).weight is self.model.get_submodule(self.table).weight

    @property
    def unplaced(self) -> list[str]:
        """Tensors in the files that the model has no place for, and does not know to be left over."""
        model: Any = self.model
        usual = "|".join([*(model._keys_to_ignore_on_load_unexpected or ()), *OLD])
        placed = {f"{self.head}.weight", *map(self.source, model.state_dict())}
        return [name for name in self.weights.header if name not in placed and not re.search(usual, name)]

    def source(self, name: str) -> str:
        """What the files call a tensor of the model: the head's is the table's where they are tied."""
        return f"{self.table}.weight" if self.tied and name == f"{self.head}.weight" else name

    def check(self) -> None:
        """Raises ValueError where a tensor of the model is in no file, or of another shape."""
        head = f"{self.head}.weight"
        if self.tied and head in self.weights.header and f"{self.table}.weight" in self.weights.header:
            for start in range(0, self.weights.header[head][1][0], ROWS):
                part = slice(start, start + ROWS)
                if not torch.equal(self.weights.rows(head, part), self.weights.rows(f"{self.table}.weight", part)):
                    raise ValueError(
                        f"the config ties {self.head} to {self.table}, and the files hold two matrices: set "
                        "tie_word_embeddings to false in config.json, or take the one that is not meant away"
                    )
        for name, value in self.model.state_dict().items():
            source = self.source(name)
            if source not in self.weights.header:
                raise ValueError(f"no file holds {source}, as {type(self.model).__name__} calls it: {IN_MEMORY}")
            if (shape := self.weights.header[source][1]) != tuple(value.shape):
                raise ValueError(
                    f"{source} is {shape} in its file, and {type(self.model).__name__} has {tuple(value.shape)}: fetch "
                    "config.json and the files of one model again"
                )

    def outside(self) -> Iterator[tuple[str, nn.Module]]:
        """Names and modules, none of which is a block, in a block, the table or the head, that own tensors."""
        aside = {id(module) for name in self.blocks for module in self.model.get_submodule(name).modules()}
        aside |= {id(self.model.get_submodule(name)) for name in (self.table, self.head)}
        for name, module in self.model.named_modules():
            if id(module) not in aside and any(True for _ in saved_tensors(module)):
                yield name, module

    def fill(self, prefix: str, dtype: torch.dtype | None = None) -> nn.Module:
        """Read all that the module of that name holds, in `dtype`, by default as it is in the files; the module."""
        module = self.model.get_submodule(prefix)
        for path, part in module.named_modules(prefix=prefix):
            for name, value in saved_tensors(part):
                floats = dtype if value.is_floating_point() else None
                put(part, name, self.weights.tensor(self.source(f"{path}.{name}"), floats))
        return module

    def empty(self, prefix: str) -> None:
        """Let go of what `fill` has read."""
        for part in self.model.get_submodule(prefix).modules():
            for name, value in saved_tensors(part):
                put(part, name, value.to("meta"))


def empty(config: Any) -> PreTrainedModel:
    """A model of the class that a config names, in eval mode, its parameters on the meta device; what no file holds,
    such as the frequencies of its positions, is there."""
    auto = auto_class_of(config)
    with init_empty_weights(include_buffers=False):
        model = auto._from_config(config) if issubclass(auto, PreTrainedModel) else auto.from_config(config)
    model.tie_weights()
    with torch.no_grad():
        for module in model.modules():  # buffers that are in no file, as from_pretrained computes them: in float32
            model._init_weights(module)
    return model.eval().requires_grad_(False)


def saved_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A module's own parameters and the buffers that are saved, by name."""
    yield from [(name, value) for name, value in module._parameters.items() if value is not None]
    kept = module._non_persistent_buffers_set
    yield from [(name, value) for name, value in module._buffers.items() if value is not None and name not in kept]


def put(module: nn.Module, name: str, value: Tensor) -> None:
    """Another tensor in the place of a module's own of that name."""
    if name in module._parameters:
        module._parameters[name] = nn.Parameter(value, requires_grad=False)
    else:
        module._buffers[name] = value
