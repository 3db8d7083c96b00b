"""What to quantize onto which integers: frozen data, a short text in, JSON both ways, rules by module name."""

import dataclasses
import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

Levels = Literal["integer", "half", "ternary"]
Ranges = Literal["minmax", "searched", "learned"]
Per = Literal["tensor", "channel", "token"] | int

GRIDS = ("weight", "input", "activation", "embedding")
FORM = (
    "w<bits>a<bits>[e<bits>][g<group size> or b<block size>][-integer|-half|-ternary], "
    "for example w2a8, w4a8g128, w3a16, w2a8-ternary, w2a8e4, w4a8b32"
)


@dataclass(frozen=True)
class Grid:
    """Onto which integers a tensor is rounded.

    A value is `(code - zero) * scale`. `per` says which entries share a scale: the whole "tensor", a "channel" (first
    dimension: an output row), a "token" (the last dimension is one group), or groups of that many entries along the
    input (last) dimension. Levels of 2-bit weights, by name and never just "2-bit": "half" {-1.5, -.5, .5, 1.5} x
    scale (default of `parse` for its quality: Liu et al. 2025, arXiv 2502.02631), "ternary" {-1, 0, 1} (Li et al.
    2016, arXiv 1605.04711) and "integer" {-2, -1, 0, 1}. Symmetric grids have a fixed zero, asymmetric ones an
    integer zero of their own. Raises ValueError for anything else.
    """

    bits: int = 4
    symmetric: bool = True
    per: Per = "channel"
    levels: Levels = "integer"

    def __post_init__(self) -> None:
        if type(self.bits) is not int or not 2 <= self.bits <= 8:
            raise ValueError(f"bits is {self.bits!r}; give an integer from 2 to 8")
        if type(self.symmetric) is not bool:
            raise ValueError(f"symmetric is {self.symmetric!r}; give true or false")
        if self.per not in ("tensor", "channel", "token") and (type(self.per) is not int or self.per < 1):
            raise ValueError(f"per is {self.per!r}; give 'tensor', 'channel', 'token' or a positive group size")
        if self.levels not in get_args(Levels):
            raise ValueError(f"levels is {self.levels!r}; give one of {get_args(Levels)}")
        if self.levels != "integer" and (self.bits != 2 or not self.symmetric):
            raise ValueError(f"levels {self.levels!r} are for symmetric 2-bit grids; this one has bits={self.bits}")

    @property
    def low(self) -> int:
        """Smallest code."""
        if not self.symmetric:
            return 0
        return -1 if self.levels == "ternary" else -(2 ** (self.bits - 1))

    @property
    def high(self) -> int:
        """Largest code."""
        return 2**self.bits - 1 if not self.symmetric else 2 ** (self.bits - 1) - 1

    @property
    def zero(self) -> float:
        """The fixed zero of a symmetric grid: -0.5 puts the levels at half integers."""
        return -0.5 if self.levels == "half" else 0.0

    @property
    def amplitude(self) -> float:
        """The multiple of the scale that min-max ranges put at the largest magnitude.

        The largest code, except on the 2-bit integer grid, which would lose a level: there 2 (DeepSpeed's choice).
        """
        if not self.symmetric:
            return float(self.high)
        return 2.0 if (self.levels, self.bits) == ("integer", 2) else self.high - self.zero


@dataclass(frozen=True)
class QuantConfig:
    """How a model is quantized.

    `weight`: linear and convolution weights; `input`: their activations ("token": dynamic, "tensor": static, after
    `zsaq.calibrate`); `activation`: what nn.ReLU and nn.ReLU6 modules put out, always a static range of the whole
    tensor; `embedding`: the token table. None leaves that part in floats. `ranges`: of the weights (the token table
    always has searched ones). `rules`: (glob on module names, config or None to leave the module alone), the first
    that matches wins.
    """

    weight: Grid | None = Grid()
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
            r"w(\d{1,2})a(\d{1,2})(?:e(\d{1,2}))?(?:([gb])(\d{1,9}))?(?:-(integer|half|ternary))?",
            str(text).strip().lower(),
        )
        widths = {int(match[i] or 8) for i in (1, 2, 3)} if match else set()
        if not match or not widths <= {*range(2, 9), 16} or (match[4] and int(match[1]) == 16):
            raise ValueError(f"{text!r} is no quantization; the form is {FORM}; bits are 2 to 8, or 16 for floats")
        weights, inputs = int(match[1]), int(match[2])
        if match[4] == "b" and inputs == 16:
            raise ValueError(f"{text!r}: activations in floats have no blocks; write g{match[5]} for groups of weights")
        table = int(match[3] or (16 if weights == 16 else 8))
        levels = match[6] or ("half" if weights == 2 else "integer")
        if levels != "integer" and weights != 2:
            raise ValueError(f"{text!r}: only 2-bit weights have {levels} levels; the form is {FORM}")
        size = int(match[5]) if match[4] else "channel"
        return cls(
            weight=None if weights == 16 else Grid(weights, per=size, levels=levels),  # type: ignore[arg-type]
            input=None if inputs == 16 else Grid(inputs, per=int(match[5]) if match[4] == "b" else "token"),
            embedding=None if table == 16 else Grid(table),
        )

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
    def _rule(cls, rule: Any) -> "tuple[str, QuantConfig | None]":
        if not isinstance(rule, list | tuple) or len(rule) != 2:
            raise ValueError(f"rule {rule!r} is not a pair [glob, configuration or null]")
        return rule[0], None if rule[1] is None else cls.from_dict(rule[1])


def _known(data: Any, kind: type) -> dict[str, Any]:
    allowed = [f.name for f in dataclasses.fields(kind)]
    if not isinstance(data, dict):
        raise ValueError(f"{kind.__name__} is {data!r}; give an object with the keys {allowed}")
    if unknown := [key for key in data if key not in allowed]:
        raise ValueError(f"{kind.__name__} has the unknown keys {unknown}; allowed are {allowed}")
    return dict(data)
