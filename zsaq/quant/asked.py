"""What a configuration asks for and no module can take, which would be dropped without a word."""

from collections.abc import Callable, Collection, Mapping
from typing import Final

from torch import nn

from zsaq.quant.attention import attention_of
from zsaq.quant.config import QuantConfig
from zsaq.quant.grid import describe
from zsaq.quant.kinds import kind_of
from zsaq.quant.layers import ACTIVATIONS

TAKERS: Final[dict[str, tuple[str, Callable[[nn.Module], bool]]]] = {
    "activation": ("module of nn.ReLU or nn.ReLU6", lambda module: type(module) in ACTIVATIONS),
    "attention": ("attention", lambda module: bool(attention_of(module))),
    "embedding": ("token table", lambda module: kind_of(module) is nn.Embedding),
}


def check_asked(modules: Mapping[str, nn.Module], config: QuantConfig, ends: Collection[str]) -> None:
    """Raises ValueError for a grid of inputs where weights stay in floats, and for one that a rule alone has for what
    it does not name. Output embeddings, `ends`, may take the grid of the table that they are tied to."""
    rules = [(glob, own) for glob, own in config.rules if own is not None]
    asked = [("the configuration", config, not any(own.weight for _, own in rules))]  # else their layers round these
    asked += [(f"the rule {glob!r}", own, own.input != config.input) for glob, own in rules]
    for whose, own, new in asked:
        if new and own.input is not None and own.weight is None and own.head is None:
            raise ValueError(
                f"{whose} has a grid for inputs ({describe(own.input)}) and none for weights, and only layers whose "
                "weights are rounded round their inputs: give weights bits, or leave inputs in floats (a16)"
            )
    for glob, own in rules:
        named = {name: module for name, module in modules.items() if config.of(name)[0] is own}
        for field, (what, takes) in TAKERS.items():
            grid = getattr(own, field)
            if grid is None or grid == getattr(config, field) or any(map(takes, named.values())):
                continue
            if field == "embedding" and (own.weight is not None or set(named) & set(ends)):
                continue  # a text has one for tables, whatever layers it is for
            raise ValueError(
                f"the rule {glob!r} has a grid for {field} ({describe(grid)}) and decides on no {what}, but on "
                f"{', '.join(list(named)[:4])}: leave it out ({field}=None), or name one"
            )
