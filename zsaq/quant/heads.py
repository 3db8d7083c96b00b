"""What stands at a model's ends: heads, found by what they are, and tables of tokens."""

from typing import Final

from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from zsaq.quant.kinds import kind_of

BARE: Final = {
    name for names in MODEL_MAPPING_NAMES.values() for name in ((names,) if isinstance(names, str) else names)
}
"""Classes that answer states and have no head, as AutoModel builds them."""


def parts(model: nn.Module) -> list[PreTrainedModel]:
    """The transformers models in a model of transformers, itself first; none in a plain module."""
    return [m for m in model.modules() if isinstance(m, PreTrainedModel)] if isinstance(model, PreTrainedModel) else []


def heads(model: nn.Module) -> set[nn.Module]:
    """The modules of the heads of a transformers model; nothing for a plain module.

    Those are output embeddings, and what stands outside the base model. A model that is its own base (T5 with its
    language head, CLIP as a classifier) has the heads of the models in it, and its own layers that are as wide as the
    labels and in none of them and in no list of blocks.
    """
    found = outputs(model)
    if not isinstance(model, PreTrainedModel):
        return found
    if model.base_model is not model:
        return found | set(model.modules()) - set(model.base_model.modules())
    for part in parts(model)[1:]:
        if part.base_model is not part:
            found |= set(part.modules()) - set(part.base_model.modules())
    if type(model).__name__ not in BARE:
        inner = (m for m in model.modules() if isinstance(m, PreTrainedModel | nn.ModuleList) and m is not model)
        blocks = {m for module in inner for m in module.modules()}
        found |= {
            m for m in model.modules() if m not in blocks and as_wide_as(m, getattr(model.config, "num_labels", 0))
        }
    return found


def outputs(model: nn.Module) -> set[nn.Module]:
    """The output embeddings of a transformers model and of the models in it."""
    return {head for part in parts(model) if (head := output_of(part)) is not None}


def output_of(part: PreTrainedModel) -> nn.Module | None:
    """What transformers calls the output embeddings, where there are any."""
    try:
        head = part.get_output_embeddings()
    except (NotImplementedError, AttributeError):
        return None
    return head if isinstance(head, nn.Module) else None


def as_wide_as(module: nn.Module, labels: int) -> bool:
    """Whether a layer answers as many numbers as there are labels."""
    return kind_of(module) not in (None, nn.Embedding) and labels in (
        getattr(module, "out_features", None), getattr(module, "out_channels", None), getattr(module, "nf", None)
    )  # fmt: skip


def token_table(model: nn.Module) -> nn.Module | None:
    """What transformers calls the input embeddings; None for a plain module and for models without any (ResNet)."""
    try:
        return model.get_input_embeddings() if isinstance(model, PreTrainedModel) else None
    except (NotImplementedError, AttributeError):
        return None


def token_tables(model: nn.Module) -> set[nn.Module]:
    """Those of the model and of the models in it, as far as they are tables."""
    return {table for part in parts(model) if isinstance(table := token_table(part), nn.Embedding)}
