"""The public model that another was fine-tuned from, loaded for its tables alone."""

from pathlib import Path

from transformers import AutoModel, PreTrainedModel

from zsaq.foreign import made
from zsaq.io.folder import place_of
from zsaq.io.verifying import bounded_by, is_student
from zsaq.quant.heads import token_table


def load_base(source: str | Path) -> PreTrainedModel:
    """The model of a folder or Hub id without its head. Raises ValueError for what is none, for a student, and for one
    that lacks its table of tokens; ConnectionError where the Hub is not reached."""
    try:
        name = place_of(source)
    except ValueError as error:
        raise ValueError(f"the base cannot be loaded: {error}") from error
    if is_student(name):
        raise ValueError(f"the base {name} is quantized: give the float model that was fine-tuned")
    try:
        with made(name, "model"), bounded_by(name):
            model, info = AutoModel.from_pretrained(
                name, trust_remote_code=False, use_safetensors=True, output_loading_info=True
            )
    except ConnectionError:
        raise
    except (OSError, ValueError) as error:
        raise ValueError(f"the base {name!r:.200} cannot be loaded: {error}") from error
    table = token_table(model)
    lost = [*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])]
    if table is None or any(model.get_submodule(key.rpartition(".")[0]) is table for key in lost):
        raise ValueError(f"the base {name} holds no table of tokens: give the model that was fine-tuned")
    return model.eval()
