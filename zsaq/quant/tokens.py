"""Whether a model has a row for each token that a tokenizer puts in by itself."""

from typing import Any

from torch import nn

from zsaq.quant.plan import token_table

SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token")


def check_tokens(model: nn.Module, tokenizer: Any) -> None:
    """Raises ValueError, by name, for a special token beyond the rows of the model's token table."""
    table = token_table(model)
    rows = getattr(table, "num_embeddings", None)
    known = {name: getattr(tokenizer, f"{name}_id", None) for name in SPECIAL}
    beyond = {name: i for name, i in known.items() if isinstance(i, int) and rows is not None and not 0 <= i < rows}
    if beyond:
        listed = ", ".join(f"{name} {getattr(tokenizer, name)!r:.40} is {i}" for name, i in beyond.items())
        raise ValueError(
            f"the tokenizer counts beyond the {rows} tokens of {type(model).__name__} ({listed}): give the tokenizer "
            "that the model was trained with, or set the token to one that it knows"
        )
