"""What a student may take, in the place of bits for every layer."""

import re
from dataclasses import dataclass
from typing import Final, final

FORM: Final = re.compile(r"(\d{1,7}(?:\.\d{1,6})?)(mb)?(?:a(8s?|16))?(?:g([1-9]\d{0,4}))?", re.ASCII)


@final
@dataclass(frozen=True)
class Size:
    """`number` of bits for each of a model's weights, or of megabytes (10^6 bytes) in all. `inputs`: bits of what goes
    into the layers, 16 for floats; `static`: in one range for each layer; `group`: entries that share a scale."""

    number: float
    megabytes: bool = False
    inputs: int = 16
    group: int | None = None
    static: bool = False

    @classmethod
    def of(cls, config: object) -> "Size | None":
        """From a text such as `3.2`, `100MB`, `3.2a8s`, `100MBa8g32`; None for a configuration of another kind."""
        match = FORM.fullmatch(config.strip().lower()) if isinstance(config, str) else None
        if match is None:
            return None
        inputs, group = match[3] or "16", int(match[4]) if match[4] else None
        return cls(float(match[1]), match[2] is not None, int(inputs.rstrip("s")), group, inputs.endswith("s"))

    def __str__(self) -> str:
        inputs = "" if self.inputs == 16 else f"a{self.inputs}{'s' * self.static}"
        group = "" if self.group is None else f"g{self.group}"
        return f"{self.number:g}{'MB' * self.megabytes}{inputs}{group}"

    def bytes(self, weights: int) -> int:
        """For a model of so many weights."""
        return int(self.number * (1e6 if self.megabytes else weights / 8))
