"""How much of a model is quantized, in bytes of its float weights, and what stays in floats."""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, final

from torch import nn

from zsaq.quant.experts import weighted

FORMLESS: Final = "has no quantized form"
WISHED: Final = ("left alone by a rule", "the configuration has no grid")  # how reasons begin that the user gave
SHOWN: Final = 0.01  # of the bytes: what is told by its class


@final
@dataclass(frozen=True)
class Share:
    """Bytes of all parameters of a float model, of those that are `quantized`, and of those left in floats by class:
    by the configuration's wish, by the rules for heads, norms and tables, or for want of a quantized form."""

    model: str
    quantized: int
    wished: Counter[str]
    spared: Counter[str]
    formless: Counter[str]
    globs: dict[str, list[str]]  # of each class without a form, none of them on what is quantized

    @classmethod
    def of(cls, model: nn.Module, chosen: Collection[str], left: Mapping[str, str]) -> "Share":
        """By the names that are quantized, and why others are not. A shared parameter counts once, as quantized if any
        of its ends is."""
        quantized, seen, names = 0, set(), dict[str, list[str]]()
        wished, spared, formless = Counter(), Counter(), Counter()
        modules = {"": model, **weighted(model)}
        for name in sorted(modules, key=lambda name: name not in chosen):
            module, reason = modules[name], left.get(name, FORMLESS)
            for key, parameter in module._parameters.items():
                if parameter is None or id(parameter) in seen:
                    continue
                seen.add(id(parameter))
                size, kind = parameter.numel() * parameter.itemsize, type(module).__name__
                if name in chosen and key == "weight":
                    quantized += size
                elif name in chosen:
                    spared["biases"] += size
                elif reason.startswith(WISHED):
                    wished[kind] += size
                elif FORMLESS in reason and parameter.ndim > 1:
                    formless[kind] += size
                    names.setdefault(kind, []).append(name)
                else:
                    spared[kind] += size
        globs = {kind: globs_of(each, chosen) for kind, each in names.items()}
        return cls(type(model).__name__, quantized, wished, spared, formless, globs)

    @property
    def total(self) -> int:
        return self.quantized + sum((self.wished + self.spared + self.formless).values())

    def __str__(self) -> str:
        return f"{self.quantized / self.total:.0%} of the bytes of {self.model} are quantized{self.told()}"

    def told(self) -> str:
        """What stays in floats, by class, the largest first; "" for nothing worth telling."""
        floats = (self.wished + self.spared + self.formless).most_common()
        lines = [f"{kind} {size / self.total:.0%}" for kind, size in floats if size >= SHOWN * self.total]
        return f"; in floats stay {', '.join(lines)}" if lines else ""

    def check(self) -> None:
        """Raises ValueError where less than half would be quantized, whatever the configuration leaves alone aside,
        and that is for want of a quantized form more than for the heads, norms and tables that zsaq spares."""
        counted = self.total - sum(self.wished.values())
        lacking = sum(self.formless.values())
        if 2 * self.quantized >= counted or lacking <= sum(self.spared.values()):
            return
        large = [kind for kind, size in self.formless.most_common() if size >= SHOWN * self.total]
        rules = ", ".join(f"({glob!r}, None)" for kind in large for glob in self.globs[kind])
        raise ValueError(
            f"only {self}. Without a quantized form: {', '.join(large)}; take another model, or say that they may stay "
            f"in floats, by QuantConfig(..., rules=({rules},))"
        )


def globs_of(names: Collection[str], chosen: Collection[str]) -> list[str]:
    """Globs on names: numbers of blocks become a star, unless that would reach what is `chosen`."""
    found: dict[str, None] = {}
    for name in names:
        glob = re.sub(r"(?<![^.])\d+(?![^.])", "*", name)
        found[name if any(fnmatchcase(each, glob) for each in chosen) else glob] = None
    return list(found)
