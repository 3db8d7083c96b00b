"""Models and tokenizers from the Hub or a folder, quantized ones included."""

from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from zsaq.foreign import made
from zsaq.io.folder import place_of
from zsaq.io.loading import load, made_of
from zsaq.io.verifying import bounded_by, is_student
from zsaq.quant.tokens import check_tokens


def load_model(name: str, auto: Any) -> PreTrainedModel:
    """The model of a folder or Hub id, through the transformers auto class `auto`, in eval mode; a student of zsaq is
    verified as `zsaq.load` verifies it.

    Raises `ValueError` where it is damaged, where no model can be made of it, and where the checkpoint lacks weights of
    that class, which would be scored with random numbers; `ConnectionError` where it is not here and the Hub is not
    reached.
    """
    name = place_of(name)
    if is_student(name):
        return load(name, auto)
    with made(name, "model"), bounded_by(name):
        model, info = made_of(auto, name)
    if lost := sorted({*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])}):
        raise ValueError(f"{name!r} has no weights for {lost}: give one with this head")
    return model.eval()


def load_with_tokenizer(name: str, auto: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a folder or Hub id; raises like :func:`load_model`, and for a tokenizer of another
    model."""
    model = load_model(name, auto)
    return model, tokenizer_for(model, name)


def tokenizer_for(model: PreTrainedModel, name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or Hub id; raises like :func:`load_model`, and for one that is not the model's."""
    with made(name, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(place_of(name), trust_remote_code=False)
    check_tokens(model, tokenizer)
    return tokenizer
