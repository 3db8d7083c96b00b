"""How many tokens a model reads: what its configuration says, and its table of positions."""

from collections.abc import Iterable
from typing import Any, Final

from torch import nn
from transformers import PreTrainedModel

LIMITS: Final = (
    "max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "context_length", "seq_length",
)  # fmt: skip
TABLES: Final = {  # of positions, a row each, as transformers calls them
    *("position_embeddings", "position_embedding", "embed_positions", "positions_embed", "position_embeds_layer"),
    *("char_position_embeddings", "wpe", "pos_emb"),
}


def configs_of(model: PreTrainedModel) -> list[dict[str, Any]]:
    """The model's config, then those nested in it, the outer ones first."""
    found: list[dict[str, Any]] = [model.config.to_dict()]
    for config in found:
        found += [value for value in config.values() if isinstance(value, dict)]
    return found


def longest(model: PreTrainedModel) -> int | None:
    """The most tokens that the model can read, special ones included, by its config or one nested in it, and by its
    table of positions; None where neither sets an end."""
    mapped = model.config.attribute_map.get("max_position_embeddings", "")
    named = [model.config.to_dict().get(mapped), *(config.get(n) for config in configs_of(model) for n in LIMITS)]
    told = [limit for limit in named if type(limit) is int and limit > 0]
    return min([*told[:1], *counted_from_behind_padding(model)], default=None)


def counted_from_behind_padding(model: nn.Module) -> list[int]:
    """The lengths of tables of positions whose first stands behind the row of padding, as RoBERTa's."""
    tables = [module for name, module in model.named_modules() if "position" in name.rpartition(".")[2]]
    ends = [(getattr(table, "num_embeddings", None), getattr(table, "padding_idx", None)) for table in tables]
    return [rows - padding - 1 for rows, padding in ends if type(rows) is int and type(padding) is int]


def ends(model: PreTrainedModel, inputs: Iterable[str]) -> dict[str, int]:
    """How many tokens the tables of positions have rows for, by the inputs that hold tokens; nothing where positions
    are relative or computed: there the config's number is that of pretraining, and binds nothing."""
    parts = {name: part for name, part in model.named_modules() if isinstance(part, PreTrainedModel)}
    towers = tuple(f"{name}." for name, part in parts.items() if part.main_input_name != "input_ids")
    found: dict[str, list[int]] = {}
    for path, table in model.named_modules():
        rows, padding = getattr(table, "num_embeddings", None), getattr(table, "padding_idx", None)
        if path.rpartition(".")[2] in TABLES and type(rows) is int and not path.startswith(towers):
            decodes = model.config.is_encoder_decoder and "decoder" in path.split(".")
            before = (getattr(table, "offset", 0) or 0) if padding is None else padding + 1  # rows of no position
            found.setdefault("decoder_input_ids" if decodes else "input_ids", []).append(rows - before)
    return {name: min(found[name]) for name in inputs if name in found}
