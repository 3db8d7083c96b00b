"""What to quantize onto which grids: frozen data, a short text in, JSON both ways, rules by module name."""

import dataclasses
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from zsaq.quant.grid import Grid
from zsaq.quant.saved import known, whole
from zsaq.quant.spelling import read

Ranges = Literal["minmax", "searched", "learned"]

GRIDS = ("weight", "input", "activation", "attention", "embedding", "head")


@dataclass(frozen=True)
class QuantConfig:
    """How a model is quantized.

    `weight`: linear and convolution weights; `input`: their activations ("token": dynamic, "tensor": static, after
    `zsaq.calibrate`); `activation`: what nn.ReLU and nn.ReLU6 modules put out, always a static range of the whole
    tensor; `attention`: what the two products of a vision transformer's attentions take, likewise; `embedding`: the
    token table; `head`: the weights of the output embeddings, whose inputs are rounded as `input` says. None leaves
    that part in floats. Where a model ties table and head they read the same codes, so one grid has to hold for both:
    that of `embedding` if `head` is None. `spare_tied` is what a text means that names no bits for the table: one that
    is tied to a head is left in floats with it, unless `head` has a grid, which it then takes. `ranges`: of the weights
    (the token table always has searched ones). Convolutions take static inputs; groups of their weights run over the
    flattened [in * height * width] of an output channel. `rules`: (glob on module names, config or None to leave the
    module alone), the first that matches wins.
    """

    weight: Grid | None = field(default_factory=Grid)
    input: Grid | None = None
    activation: Grid | None = field(default=None, kw_only=True)
    attention: Grid | None = field(default=None, kw_only=True)
    embedding: Grid | None = None
    ranges: Ranges = "searched"
    rules: "tuple[tuple[str, QuantConfig | None], ...]" = ()
    head: Grid | None = field(default=None, kw_only=True)
    spare_tied: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        for name in GRIDS:
            if not isinstance(getattr(self, name), Grid | None):
                raise ValueError(f"{name} is {getattr(self, name)!r}; give a Grid or None")
        if type(self.spare_tied) is not bool:
            raise ValueError(f"spare_tied is {self.spare_tied!r}; give true or false")
        if self.weight is not None and self.weight.per == "token":
            raise ValueError("weight.per is 'token'; weights have 'tensor', 'channel' or a group size")
        for name, grid in (("embedding", self.embedding), ("head", self.head)):
            if grid is not None and grid.per in ("token", "tensor"):
                raise ValueError(f"{name}.per is {grid.per!r}; give 'channel' (a scale per row) or a group size")
        if self.input is not None and self.input.per == "channel":
            raise ValueError("input.per is 'channel'; inputs have 'token', 'tensor' or a group size")
        if self.input is not None and not self.input.uniform:
            raise ValueError(
                f"input.levels is {self.input.levels!r}, whose values are not even; that is for weights: give 'integer'"
            )
        between = {"activation": "what a ReLU puts out", "attention": "what a product of attention takes"}
        for name, what in between.items():
            if (grid := getattr(self, name)) is not None and (grid.per, grid.levels) != ("tensor", "integer"):
                raise ValueError(
                    f"{name} is per {grid.per!r} with {grid.levels!r} levels; {what} has one static range for the "
                    "whole tensor and needs its zero: give per='tensor' and integer levels"
                )
        for name, grid in (("input", self.input), ("activation", self.activation), ("attention", self.attention)):
            if grid is not None and grid.scales != "float32":
                raise ValueError(
                    f"{name}.scales is {grid.scales!r}; that is for weights, which are stored: give 'float32'"
                )
        if self.ranges == "minmax" and self.weight is not None and self.weight.scaling.united:
            raise ValueError(
                f"weight.scales is {self.weight.scales!r}, times a float that is found once for the whole tensor, and "
                "ranges='minmax' would find it anew in every step: give ranges='searched' or 'learned'"
            )
        if self.ranges not in get_args(Ranges):
            raise ValueError(f"ranges is {self.ranges!r}; give one of {get_args(Ranges)}")
        if isinstance(self.rules, list):
            object.__setattr__(self, "rules", tuple(self.rules))
        if not isinstance(self.rules, tuple):
            raise ValueError(
                f"rules is {self.rules!r:.200}; give a tuple of (glob on module names, QuantConfig or None)"
            )
        for rule in self.rules:
            if not (isinstance(rule, tuple) and len(rule) == 2 and isinstance(rule[0], str) and rule[0]):
                raise ValueError(f"rule {rule!r} is not a pair (glob on module names, QuantConfig or None)")
            if not isinstance(rule[1], QuantConfig | None):
                raise ValueError(
                    f"rule {rule[0]!r} has {rule[1]!r}; give a QuantConfig, or None to leave modules alone"
                )
            if rule[1] is not None and rule[1].rules:
                raise ValueError(f"rule {rule[0]!r} has rules of its own; list them all at the top level")

    @classmethod
    def parse(cls, text: str) -> "QuantConfig":
        """From a short text, as `zsaq.quant.spelling` has it. Raises ValueError for any other."""
        return cls(**read(text))

    @classmethod
    def given(cls, config: "str | QuantConfig") -> "QuantConfig":
        """A configuration as it is, or parsed from its text. Raises ValueError for anything else."""
        if not isinstance(config, str | QuantConfig):
            raise ValueError(f"the configuration is {config!r:.200}; give a text such as 'w4a8g128', or a QuantConfig")
        return cls.parse(config) if isinstance(config, str) else config

    @property
    def static(self) -> bool:
        """Whether any layer would have a static range, which `zsaq.calibrate` must fill."""
        each = [self, *(own for _, own in self.rules if own is not None)]
        return any(own.activation or own.attention or (own.input and own.input.per == "tensor") for own in each)

    def headed(self) -> "QuantConfig":
        """The same for a module that takes the grid of the head: a head, or the table that it is tied to."""
        return dataclasses.replace(self, weight=self.head, embedding=self.head)

    def of(self, name: str) -> "tuple[QuantConfig | None, bool]":
        """The configuration of the module called `name`, and whether a rule named it."""
        for glob, config in self.rules:
            if fnmatchcase(name, glob):
                return config, True
        return self, False

    def check_rules(self, names: list[str]) -> None:
        """Raises ValueError for a rule that matches none of `names`, or none that an earlier rule leaves to it."""
        open_to = names
        for glob, _ in self.rules:
            matched = [name for name in names if fnmatchcase(name, glob)]
            if not matched:
                shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
                raise ValueError(f"the rule {glob!r} matches no module; the modules are {shown}")
            if not set(matched) & set(open_to):
                raise ValueError(
                    f"the rule {glob!r} decides nothing: earlier rules match {', '.join(matched[:8])} already; put it "
                    "before them"
                )
            open_to = [name for name in open_to if name not in matched]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` is its inverse."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name in GRIDS:
            data[name] = data[name] and dataclasses.asdict(data[name])
        data["rules"] = [[glob, config and config.to_dict()] for glob, config in self.rules]
        return data

    @classmethod
    def from_dict(cls, data: Any) -> "QuantConfig":
        """From JSON that nobody has checked yet. Raises ValueError that names what was given and what is allowed."""
        values = known(data, cls)
        for name in GRIDS:
            if values.get(name) is not None:
                values[name] = Grid(**known(values[name], Grid))
        if "rules" in values:
            if not isinstance(values["rules"], list | tuple):
                raise ValueError(f"rules is {values['rules']!r}; give a list of [glob, configuration or null]")
            values["rules"] = tuple(cls._rule(rule) for rule in values["rules"])
        return cls(**values)

    @classmethod
    def from_saved(cls, data: Any) -> "QuantConfig":
        """As `from_dict`, of JSON that `to_dict` has written and nobody else: no default stands in for a key that
        lacks, but for one that is younger than the files (`LATER`). Raises ValueError that names the keys."""
        return cls.from_dict(whole(data, cls, dict.fromkeys(GRIDS, Grid)))

    @classmethod
    def _rule(cls, rule: Any) -> "tuple[str, QuantConfig | None]":
        if not isinstance(rule, list | tuple) or len(rule) != 2:
            raise ValueError(f"rule {rule!r:.200} is not a pair [glob, configuration or null]")
        if isinstance(rule[1], dict) and rule[1].get("rules"):
            raise ValueError(f"rule {rule[0]!r:.200} has rules of its own; list them all at the top level")
        return rule[0], None if rule[1] is None else cls.from_dict(rule[1])
