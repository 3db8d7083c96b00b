"""What to quantize onto which grids: frozen data, a short text in, JSON both ways, rules by module name."""

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from zsaq.quant.grid import CODEBOOKS, Grid, codebook_bits

Ranges = Literal["minmax", "searched", "learned"]

GRIDS = ("weight", "input", "activation", "embedding")
LEVELS = "|".join(("integer", *CODEBOOKS))
FORM = (
    f"w<bits>a<bits>[e<bits>][g<group size> or b<block size>][-({LEVELS})], "
    "for example w2a8, w4a8g128, w3a16, w2a8-ternary, w2a8e4, w4a8b32"
)


@dataclass(frozen=True)
class QuantConfig:
    """How a model is quantized.

    `weight`: linear and convolution weights; `input`: their activations ("token": dynamic, "tensor": static, after
    `zsaq.calibrate`); `activation`: what nn.ReLU and nn.ReLU6 modules put out, always a static range of the whole
    tensor; `embedding`: the token table. None leaves that part in floats. `ranges`: of the weights (the token table
    always has searched ones). Convolutions take static inputs; groups of their weights run over the flattened [in *
    height * width] of an output channel. `rules`: (glob on module names, config or None to leave the module alone),
    the first that matches wins.
    """

    weight: Grid | None = field(default_factory=Grid)
    input: Grid | None = None
    activation: Grid | None = field(default=None, kw_only=True)
    embedding: Grid | None = None
    ranges: Ranges = "searched"
    rules: "tuple[tuple[str, QuantConfig | None], ...]" = ()

    def __post_init__(self) -> None:
        for name in GRIDS:
            if not isinstance(getattr(self, name), Grid | None):
                raise ValueError(f"{name} is {getattr(self, name)!r}; give a Grid or None")
        if self.weight is not None and self.weight.per == "token":
            raise ValueError("weight.per is 'token'; weights have 'tensor', 'channel' or a group size")
        if self.embedding is not None and self.embedding.per in ("token", "tensor"):
            raise ValueError(
                f"embedding.per is {self.embedding.per!r}; give 'channel' (a scale per row) or a group size"
            )
        if self.input is not None and self.input.per == "channel":
            raise ValueError("input.per is 'channel'; inputs have 'token', 'tensor' or a group size")
        if self.input is not None and not self.input.uniform:
            raise ValueError(
                f"input.levels is {self.input.levels!r}, whose values are not even; that is for weights: give 'integer'"
            )
        if self.activation is not None and (self.activation.per, self.activation.levels) != ("tensor", "integer"):
            raise ValueError(
                f"activation is per {self.activation.per!r} with {self.activation.levels!r} levels; what a ReLU puts "
                "out has one static range for the whole tensor and needs its zero: give per='tensor' and integer levels"
            )
        if self.ranges not in get_args(Ranges):
            raise ValueError(f"ranges is {self.ranges!r}; give one of {get_args(Ranges)}")
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
        """From a short text: `w2a8`, `w4a8g128`, `w8a8`, `w3a16`, `w2a8-ternary`, `w2a8-integer`, `w2a8e4`, `w4a8b32`.

        16 leaves that side in floats; activations of up to 8 bits are dynamic per token. `g`: weights in groups of that
        size along the input dimension; `b`: weights and activations both, which is the rule of ONNX Runtime's kernels
        for few bits. `e`: bits of the token table, whose rows have a scale each (default 8, 16 leaves it in floats).
        Raises ValueError for any other text.
        """
        match = re.fullmatch(
            rf"w([1-9]\d?)a([1-9]\d?)(?:e([1-9]\d?))?(?:([gb])([1-9]\d{{0,8}}))?(?:-({LEVELS}))?",
            str(text).strip().lower(),
            re.ASCII,  # digits of other scripts are no digits here
        )
        widths = {int(match[i] or 8) for i in (1, 2, 3)} if match else set()
        if not match or not widths <= {*range(2, 9), 16} or (match[4] and int(match[1]) == 16):
            raise ValueError(f"{text!r} is no quantization; the form is {FORM}; bits are 2 to 8, or 16 for floats")
        weights, inputs = int(match[1]), int(match[2])
        if match[4] == "b" and inputs == 16:
            raise ValueError(f"{text!r}: activations in floats have no blocks; write g{match[5]} for groups of weights")
        table = int(match[3] or (16 if weights == 16 else 8))
        levels = match[6] or ("half" if weights == 2 else "integer")
        if levels != "integer" and weights != codebook_bits(levels):
            raise ValueError(
                f"{text!r}: only {codebook_bits(levels)}-bit weights have {levels} levels; the form is {FORM}"
            )
        size = int(match[5]) if match[4] else "channel"
        return cls(
            weight=None if weights == 16 else Grid(weights, per=size, levels=levels),
            input=None if inputs == 16 else Grid(inputs, per=int(match[5]) if match[4] == "b" else "token"),
            embedding=None if table == 16 else Grid(table),
        )

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
        return any(own.activation or (own.input and own.input.per == "tensor") for own in each)

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
        values = _known(data, cls)
        for name in GRIDS:
            if values.get(name) is not None:
                values[name] = Grid(**_known(values[name], Grid))
        if "rules" in values:
            if not isinstance(values["rules"], list | tuple):
                raise ValueError(f"rules is {values['rules']!r}; give a list of [glob, configuration or null]")
            values["rules"] = tuple(cls._rule(rule) for rule in values["rules"])
        return cls(**values)

    @classmethod
    def from_saved(cls, data: Any) -> "QuantConfig":
        """As `from_dict`, of JSON that `to_dict` has written and nobody else: no default stands in for a key that
        lacks. Raises ValueError that names the keys."""
        if lost := list(_lost(data)):
            raise ValueError(
                f"the saved configuration has no {', '.join(lost[:8])}, and no default is assumed for what is saved: "
                "fetch the files again, or save the student again"
            )
        return cls.from_dict(data)

    @classmethod
    def _rule(cls, rule: Any) -> "tuple[str, QuantConfig | None]":
        if not isinstance(rule, list | tuple) or len(rule) != 2:
            raise ValueError(f"rule {rule!r:.200} is not a pair [glob, configuration or null]")
        if isinstance(rule[1], dict) and rule[1].get("rules"):
            raise ValueError(f"rule {rule[0]!r:.200} has rules of its own; list them all at the top level")
        return rule[0], None if rule[1] is None else cls.from_dict(rule[1])


def _lost(data: Any) -> Iterator[str]:
    """The keys that a configuration in JSON lacks, as in weight.bits, those of its rules too."""
    if not isinstance(data, dict):
        return
    rules = data.get("rules")
    ruled = [rule[1] for rule in rules if isinstance(rule, list) and len(rule) == 2] if isinstance(rules, list) else []
    for start, config in {"": data, **{f"rules.{number}.": config for number, config in enumerate(ruled)}}.items():
        if isinstance(config, dict):
            yield from (f"{start}{f.name}" for f in dataclasses.fields(QuantConfig) if f.name not in config)
            for name, grid in ((name, config.get(name)) for name in GRIDS):
                if isinstance(grid, dict):
                    yield from (f"{start}{name}.{f.name}" for f in dataclasses.fields(Grid) if f.name not in grid)


def _known(data: Any, kind: type) -> dict[str, Any]:
    allowed = [f.name for f in dataclasses.fields(kind)]
    if not isinstance(data, dict):
        raise ValueError(f"{kind.__name__} is {data!r:.200}; give an object with the keys {allowed}")
    if unknown := [key for key in data if key not in allowed]:
        raise ValueError(f"{kind.__name__} has the unknown keys {unknown!r:.200}; allowed are {allowed}")
    return dict(data)
