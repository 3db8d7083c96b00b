"""A float model from a folder or the Hub, to be quantized; what kind of model it is; and that it stays as it is."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

from huggingface_hub.errors import LocalEntryNotFoundError
from torch import nn
from transformers import (
    AutoConfig,
    PreTrainedModel,
)
from transformers.models.auto import modeling_auto

from zsaq.foreign import UNMADE
from zsaq.io.folder import CONFIG, place_of, read_config
from zsaq.io.loading import class_of, made_of
from zsaq.io.verifying import bounded_by
from zsaq.quant.finite import unfinite
from zsaq.quant.model import is_quantized
from zsaq.quant.modes import evaluating
from zsaq.quant.reach import check_own
from zsaq.sentence_files import fetch

Kind = Literal["text", "causal", "image", "other"]
MAPPINGS: Final[dict[Kind, Any]] = {
    "text": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "causal": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "image": modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
}
REGISTERED: Final[dict[Kind, Any]] = {
    "text": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    "causal": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING,
    "image": modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
}


def load_teacher(source: str | Path) -> PreTrainedModel:
    """The float model of a folder or Hub id, in eval mode and in the dtype that it was saved in.

    Raises ValueError for no model, one that is quantized already, and one that lacks weights, which would be drawn at
    random; ConnectionError where the Hub is not reached.
    """
    source = place_of(source)
    try:
        if (Path(source) / CONFIG).is_file():
            read_config(Path(source))
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        if config.to_dict().get("quantization_config"):
            raise ValueError("it is quantized already; give the float model")
        fetch(source)
        with bounded_by(source):
            model, info = made_of(class_of(config, source), source, config=config)
    except (OSError, ValueError, *UNMADE) as error:
        if isinstance(error.__cause__, LocalEntryNotFoundError):
            raise ConnectionError(f"{source} is not here and the Hub was not reached: {error}") from error
        raise ValueError(f"{source} cannot be quantized: {error}") from error
    if info["missing_keys"]:
        raise ValueError(f"{source} has no weights for {sorted(info['missing_keys'])[:8]}: give one with this head")
    return model.eval()


def check_float(teacher: nn.Module, source: str) -> None:
    """Raises ValueError for a model that is quantized already, for one that no student can be a copy of and for weights
    that are not finite, before anything is spent."""
    if is_quantized(teacher):
        raise ValueError(f"{source} is quantized already; give the float model")
    check_own(teacher)
    if broken := list(unfinite(teacher)):
        raise ValueError(f"{source} has weights that are not finite ({', '.join(broken[:4])}): give a model that works")


def name_of(source: str) -> str:
    """What a model is called where others read it: a Hub id as it is, of a folder, or what looks like one, the last
    part alone."""
    path = Path(os.path.expanduser(source))
    known = not path.is_dir() and re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", source)
    return source if known else path.resolve().name


@contextmanager
def unchanged(*models: nn.Module) -> Iterator[None]:
    """Inside, the models are in eval mode; on the way out their modules' modes, what of them wants a gradient and their
    device are as they were."""
    wanted = [(parameter, parameter.requires_grad) for model in models for parameter in model.parameters()]
    devices = [next((p.device for p in model.parameters()), None) for model in models]
    try:
        with evaluating(*models):
            yield
    finally:
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)
        for model, device in zip(models, devices, strict=True):
            if device is not None and next(model.parameters()).device != device:
                model.to(device)


def kind_of(model: nn.Module) -> Kind:
    """What the model's class answers: a class of a text, the next token, a class of an image (any plain module), or
    something else; a class of one's own by the auto class that it is registered with."""
    if not isinstance(model, PreTrainedModel):
        return "image"
    names = {parent.__name__ for parent in type(model).__mro__}
    for kind, mapping in MAPPINGS.items():
        values = [value if isinstance(value, tuple) else (value,) for value in mapping.values()]
        if names & {name for value in values for name in value}:
            return kind
    for kind, mapping in REGISTERED.items():
        found = mapping.get(type(model.config), None)
        if found is not None and isinstance(model, found):
            return kind
    return "other"
