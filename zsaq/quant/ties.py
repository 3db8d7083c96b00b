"""Tables of tokens and heads: what a configuration says of them is done or refused, and what shares a weight shares its
fate."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, final

from torch import nn

from zsaq.quant.config import QuantConfig
from zsaq.quant.grid import describe
from zsaq.quant.kinds import kind_of
from zsaq.quant.share import FORMLESS

RULED: Final = "left alone by a rule"
Verdicts = dict[str, QuantConfig | str]


@final
@dataclass(frozen=True, eq=False)
class Ends:
    """Names of a model's output embeddings and of its token tables."""

    heads: Collection[str]
    tables: Collection[str]

    def check(self, modules: dict[str, nn.Module], config: QuantConfig) -> None:
        """Raises ValueError for bits of the head, and of the table if they were asked for, that no module can take.
        Where rules decide about all of them, they may be given."""
        asked = [("the configuration", config, self.heads, "head", config.head)]
        if not config.spare_tied:
            asked.append(("the configuration", config, self.tables, "token table", config.embedding))
        asked += [(f"the rule {glob!r}", own, self.heads, "head", own.head) for glob, own in config.rules if own]
        for whose, own, ends, kind, grid in asked:
            named = [name for name in ends if config.of(name)[0] is own]
            if grid is not None and not (ends if own is config else named):
                raise ValueError(
                    f"{whose} has a grid for the {kind} ({describe(grid)}), and no layer takes it: "
                    + (
                        f"it does not match {', '.join(ends)}"
                        if ends
                        else f"transformers knows no {kind} of this model"
                    )
                    + "; leave it out, or name a layer in a rule"
                )
            for name in named:
                if grid is not None and kind_of(modules[name]) is None:
                    raise ValueError(
                        f"{whose} has a grid for the {kind}, but {name} ({type(modules[name]).__name__}) {FORMLESS}; "
                        "leave it out"
                    )

    def settle(self, modules: dict[str, nn.Module], verdicts: Verdicts, config: QuantConfig) -> dict[str, str]:
        """Give all ends of a tie one verdict, in place; which modules then read the codes of which table.

        Raises ValueError for bits that are asked for at some ends alone, or others at the head than at its table.
        """
        shared: dict[int, list[str]] = {}
        for name, module in modules.items():
            if isinstance(weight := module._parameters.get("weight"), nn.Parameter):
                shared.setdefault(id(weight), []).append(name)
        ties = {}
        for ends in shared.values():
            tables = [name for name in ends if kind_of(modules[name]) is nn.Embedding]
            mixed = 0 < len(tables) < len(ends)
            heads = [name for name in ends if name in self.heads] if mixed else []
            if heads:
                verdicts |= {name: headed(verdicts[name], config.of(name)[0]) for name in tables}
            asked = [
                name
                for name in ends
                if isinstance(verdicts[name], QuantConfig) and self.asks(name, config, mixed, heads)
            ]
            owner = next((name for name in tables if name in asked), None if mixed or not tables else tables[0])
            for name in heads:
                check_same(name, owner or tables[0], config)
            if owner is not None and isinstance(whose := verdicts[owner], QuantConfig):
                for name in ends:
                    if name != owner and not ends_as(verdicts[name], RULED, FORMLESS):
                        verdicts[name], ties[name] = whose, owner
            floats = [name for name in ends if isinstance(verdicts[name], str)]
            apart = owner is None and mixed  # a layer and a table, each on a grid of its own
            if asked and apart and verdicts[tables[0]] != RULED:
                raise ValueError(
                    f"{asked[0]} is tied to the table {tables[0]}; write the rule for {tables[0]}, then both are "
                    "quantized"
                )
            if asked and floats:
                raise ValueError(
                    f"{asked[0]} is tied to {floats[0]}, which stays in floats ({verdicts[floats[0]]}): name all ends "
                    "in rules that give them bits, or none"
                )
            if apart and not floats:
                floats = [name for name in ends if name not in tables]
                verdicts |= dict.fromkeys(floats, f"tied to the table {tables[0]}, which no rule names")
            if not floats:
                continue
            for name in ends:
                if not isinstance(verdicts[name], str):
                    verdicts[name] = f"tied to {' and '.join(floats)}, which stays in floats"
                ties.pop(name, None)
        return ties

    def asks(self, name: str, config: QuantConfig, mixed: bool, heads: Collection[str]) -> bool:
        """Whether bits were asked for at this end of a tie, of tables and layers if `mixed`, `heads` among them."""
        own, ruled = config.of(name)
        if own is None or ruled:
            return ruled
        if name in self.heads:
            return own.head is not None
        return mixed and (not own.spare_tied or (own.head is not None and len(heads) > 0))


def headed(verdict: QuantConfig | str, own: QuantConfig | None) -> QuantConfig | str:
    """What becomes of a table that is tied to a head: it takes the head's grid, if no other was asked for."""
    takes = own is not None and own.head is not None and (own.spare_tied or own.embedding == own.head)
    return own.headed() if own is not None and takes and not ends_as(verdict, FORMLESS) else verdict


def ends_as(verdict: QuantConfig | str, *reasons: str) -> bool:
    return isinstance(verdict, str) and verdict.endswith(reasons)


def check_same(head: str, table: str, config: QuantConfig) -> None:
    """Raises ValueError for a head that is to have another grid than the table whose codes it reads."""
    (over, _), (below, _) = config.of(head), config.of(table)
    if over is None or over.head is None or below is None:
        return
    grid = below.head if below.spare_tied and below.head else below.embedding
    if grid != over.head:
        raise ValueError(
            f"{head} is tied to the table {table}, so that both read the same codes, but the head is to be "
            f"{describe(over.head)} and the table {describe(grid)}: give both one grid, as e8h8 does in a text, or h8 "
            "alone"
        )
