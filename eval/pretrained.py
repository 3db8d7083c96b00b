"""Models and tokenizers from the Hub or a folder, quantized ones included."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from zsaq.io.loading import load
from zsaq.io.teacher import readable
from zsaq.io.verifying import bounded_by, is_student
from zsaq.quant.tokens import check_tokens


def load_model(name: str, auto: Any) -> PreTrainedModel:
    """The model of a folder or Hub id, through the transformers auto class `auto`, in eval mode; a student of zsaq is
    verified as `zsaq.load` verifies it.

    Raises `ValueError` where it is damaged, and where the checkpoint lacks weights of that class, which would be scored
    with random numbers.
    """
    name = _path(name)
    if is_student(name):
        return load(name, auto)
    with bounded_by(name):
        model, info = auto.from_pretrained(name, output_loading_info=True)
    if info["missing_keys"]:
        raise ValueError(f"{name!r} has no weights for {sorted(info['missing_keys'])}: give one with this head")
    return model.eval()


def load_with_tokenizer(name: str, auto: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a folder or Hub id; raises `ValueError` like :func:`load_model`, and for a tokenizer of
    another model."""
    model = load_model(name, auto)
    return model, tokenizer_for(model, name)


def tokenizer_for(model: PreTrainedModel, name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or Hub id. Raises `ValueError` for one that is damaged or not the model's."""
    with readable(name, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(_path(name))
    check_tokens(model, tokenizer)
    return tokenizer


def _path(name: str) -> str:
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        raise ValueError(f"{name!r} is no folder: give a folder with config.json, or an id on the Hub")
    return str(Path(name).expanduser()) if name.startswith("~") else name
